"""The data sets of the papers: found under one folder by their names, packed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gaitsdk.datasets import Partition
from gaitsdk.errors import DatasetError
from gaitsdk_training.data import SequenceDataset, from_tree, pack

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Licensed:
    """A data set that its owners lend: what it is called, who lends it, and how its tree looks under ROOT."""

    title: str
    owner: str
    tree: str
    probe_list: str = ""

    @property
    def needs(self) -> str:
        """What is missing where it is not there."""
        listed = f" and {self.probe_list} beside it" if self.probe_list else ""
        return f"needs {self.title} (licensed; from {self.owner}; normalised silhouettes as ROOT/{self.tree}{listed})"


LICENSED = {
    "casiab": Licensed(
        "CASIA-B", "the Institute of Automation, Chinese Academy of Sciences, by agreement", "casiab/001/nm-01/090/*"
    ),
    "oumvlp": Licensed(
        "OU-MVLP", "the Institute of Scientific and Industrial Research, Osaka University, by signed agreement",
        "oumvlp/00001/00/090/*",
    ),
    "gait3d": Licensed(
        "Gait3D", "its authors, gait3d.github.io, by signed agreement", "gait3d/0000/camid9_videoid1/seq0/*",
        "Gait3D.json",
    ),
    "grew": Licensed("GREW", "its authors, grew-benchmark.org, by signed agreement", "grew/00001train/00/79XJefi8/*"),
}  # fmt: skip


class NotThere(LookupError):
    """A data set is not under the folder; the text says what would be needed."""


@dataclass
class Data:
    """The data sets under one folder.

    Args:
        root: holds a folder per data set, named after it in any spelling ("CASIA-B-pkl"); None = there are none.
        work: packed copies are written there.
        progress: gives, for a title, what is called as update(done, total).
    """

    root: Path | None
    work: Path
    progress: Callable[[str], Progress | None] = lambda title: None

    def __post_init__(self) -> None:
        self._parts: dict[tuple[str, str, int, int], SequenceDataset] = {}

    def tree(self, dataset: str) -> Path:
        """Its folder. Raises: NotThere; DatasetError: several could be it."""
        found = [each for each in self._children() if each.is_dir() and _plain(each.name).startswith(dataset)]
        if not found:
            raise NotThere(LICENSED[dataset].needs)
        if len(found) > 1:
            raise DatasetError(
                f"several folders could be {LICENSED[dataset].title}", where=str(self.root),
                got=", ".join(each.name for each in found), expected="one", fix="move the others away",
            )  # fmt: skip
        return found[0]

    def partition(self, dataset: str) -> Partition | None:
        """The list that came with it: a .json of its name beside the tree or in it; None where a rule splits it.

        Raises: NotThere: the data set cannot be used without.
        """
        near = [*self._children(), *sorted(self.tree(dataset).glob("*.json"))]
        for each in near:
            if each.suffix.lower() == ".json" and _plain(each.stem).startswith(dataset):
                return Partition.read(each)
        if LICENSED[dataset].probe_list:
            raise NotThere(LICENSED[dataset].needs)
        return None

    def part(self, dataset: str, part: str, size: int = 64, channels: int = 1) -> SequenceDataset:
        """Its training or test sequences, memory-mapped. Raises: NotThere."""
        key = dataset, part, size, channels
        if key not in self._parts:
            tree, partition = self.tree(dataset), self.partition(dataset)
            maps = f"-{channels}maps" if channels > 1 else ""
            packed = pack(
                tree, self.work / "packed" / f"{dataset}-{size}{maps}.pack", size=size, channels=channels,
                progress=self.progress(f"packing {LICENSED[dataset].title}"),
            )  # fmt: skip
            self._parts[key] = from_tree(
                packed.path, dataset=dataset, partition=partition, part=part, size=size, channels=channels
            )
        return self._parts[key]

    def probe_set(self, dataset: str) -> tuple[str, ...] | None:
        """The probes that a list names, where the protocol has them from a list."""
        partition = self.partition(dataset)
        return partition.probe if LICENSED[dataset].probe_list and partition is not None else None

    def _children(self) -> list[Path]:
        return [] if self.root is None or not self.root.is_dir() else sorted(self.root.iterdir())


def _plain(name: str) -> str:
    return "".join(each for each in name.lower() if each.isalnum())
