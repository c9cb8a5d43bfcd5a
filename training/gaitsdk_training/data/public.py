"""The public data sets: how their folders are named, who trains and who tests.

described = public_dataset("oumvlp")
partition = described.split(SequenceTree(root).identities)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gaitsdk.datasets import Partition
from gaitsdk.errors import DatasetError, OptionError
from gaitsdk.slips import suggest


@dataclass(frozen=True, kw_only=True)
class PublicDataset:
    """A public data set in the field's tree `<root>/<identity>/<type>/<view>/`.

    Attributes:
        name: what `public_dataset` takes; the name of its protocol in `gaitsdk_training.evaluation`, too.
        identity, type, view: regular expressions that the folders' whole names match.
        example: the three names of one sequence.
        train, test: identities of the official split.
        rule: the official split, in words.
        trains: whether an identity trains by that rule; None where only a list says.
    """

    name: str
    identity: str
    type: str
    view: str
    example: tuple[str, str, str]
    train: int
    test: int
    rule: str
    trains: Callable[[str], bool] | None

    def check_names(self, identities: Iterable[str], types: Iterable[str], views: Iterable[str], where: str) -> None:
        """Refuses names of which none is as in this data set: it must be another, or another layout of it.

        Raises:
            DatasetError: it says which level, and what would be right.
        """
        levels = (("identities", self.identity, identities), ("types", self.type, types), ("views", self.view, views))
        for (level, pattern, names), right in zip(levels, self.example, strict=True):
            found = sorted(names)
            if found and not any(re.fullmatch(pattern, each) for each in found):
                raise DatasetError(
                    f"the {level} are not named as in {self.name}",
                    where=where,
                    got=", ".join(found[:5]),
                    expected=f"names like {right} ({'/'.join(self.example)})",
                    fix="check the folder, or name no public data set and pass a partition",
                )

    def split(
        self, identities: Iterable[str], partition: Partition | str | os.PathLike[str] | None = None
    ) -> Partition:
        """Who trains and who tests.

        Args:
            identities: those of the tree.
            partition: the list that came with the data, read already or not; it decides alone where it is given.

        Returns:
            By the rule, only identities that were passed, sorted; those not named as in this data set are in neither
            part. From a list, the list.

        Raises:
            DatasetError: this data set is split by a list only and none was given, or it cannot be read.
        """
        if isinstance(partition, Partition):
            return partition
        if partition is not None:
            return Partition.read(partition)
        if self.trains is None:
            raise DatasetError(
                f"{self.name} is split by a list that comes with the data",
                where="partition",
                got="None",
                expected=f"{self.rule}: {self.train} identities train, {self.test} test",
                fix="pass that file as the partition",
            )
        known = sorted(each for each in set(identities) if re.fullmatch(self.identity, each))
        train = tuple(each for each in known if self.trains(each))
        chosen = set(train)
        return Partition(train, tuple(each for each in known if each not in chosen))


def public_dataset(name: str) -> PublicDataset:
    """The description of "casiab", "oumvlp", "gait3d" or "grew".

    Raises:
        OptionError: no such name.
    """
    if name not in PUBLIC_DATASETS:
        raise OptionError("no such data set", where="dataset", got=repr(name), fix=suggest(name, PUBLIC_DATASETS))
    return PUBLIC_DATASETS[name]


def _oumvlp_trains(identity: str) -> bool:
    # The official counts (5153 train, 5154 test) leave one odd number of 1..10307 for the test: the last.
    return int(identity) % 2 == 1 and int(identity) < 10307


_DEGREES = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
_DEGREES_OUMVLP = tuple(f"{angle:03d}" for angle in (*range(0, 91, 15), *range(180, 271, 15)))

PUBLIC_DATASETS: Mapping[str, PublicDataset] = {
    each.name: each
    for each in (
        PublicDataset(
            name="casiab",
            identity=r"(?!000)0[0-9]{2}|1[01][0-9]|12[0-4]",
            type=r"nm-0[1-6]|bg-0[12]|cl-0[12]",
            view="|".join(_DEGREES),
            example=("001", "nm-01", "090"),
            train=74,
            test=50,
            rule="001 to 074 train, 075 to 124 test",
            trains=lambda identity: int(identity) <= 74,
        ),
        PublicDataset(
            name="oumvlp",
            identity=r"(?!00000)0[0-9]{4}|10[0-2][0-9]{2}|1030[0-7]",
            type=r"0[01]",
            view="|".join(_DEGREES_OUMVLP),
            example=("00001", "00", "090"),
            train=5153,
            test=5154,
            rule="odd numbers up to 10305 train, all others test",
            trains=_oumvlp_trains,
        ),
        PublicDataset(
            name="gait3d",
            identity=r"[0-9]{4}",
            type=r"camid[0-9]+_videoid[0-9]+",
            view=r"seq[0-9]+",
            example=("0000", "camid9_videoid1", "seq0"),
            train=3000,
            test=1000,
            rule="the list Gait3D.json, which names the 1000 probes, too",
            trains=None,
        ),
        PublicDataset(
            name="grew",
            # The test's probes have a folder of one pseudo-identity: who they are is known to its server only.
            identity=r"[0-9]{5}train|[0-9]{5}|probe",
            type=r"0[0-3]",
            view=r".+",
            example=("00001train", "00", "79XJefi8"),
            train=20000,
            test=6001,
            rule="names that end in 'train' train, all others test",
            trains=lambda identity: identity.endswith("train"),
        ),
    )
}
