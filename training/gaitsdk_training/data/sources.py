"""Where training sequences come from: a tree, a packed file of one, or synthetic walkers with a cache on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaitsdk import synthetic
from gaitsdk.datasets import Partition, SequenceTree
from gaitsdk.errors import DatasetError, OptionError
from gaitsdk_training.data.dataset import SequenceDataset
from gaitsdk_training.data.packed import PackedSequences
from gaitsdk_training.data.public import PublicDataset, public_dataset
from gaitsdk_training.data.reading import LoadReport, Progress, Skipped, nothing_usable, read_usable, skipped_folders

logger = logging.getLogger(__name__)

#: Of a split.
PARTS = ("train", "test")


def from_tree(
    root: str | os.PathLike[str],
    *,
    identities: Iterable[str] | None = None,
    types: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    dataset: str | PublicDataset | None = None,
    partition: Partition | str | os.PathLike[str] | None = None,
    part: str = "train",
    size: int = 64,
    channels: int = 1,
    progress: Progress | None = None,
) -> SequenceDataset:
    """Loads `<root>/<id>/<type>/<view>/*`, or opens what `pack` made of it: all, or the named identities, types, views.

    Files that cannot be used (corrupt, empty, NaN, nobody in any frame) are left out: each is logged with its path, and
    `report` of the result lists them all.

    Args:
        root: the tree, or a packed file, which is not read but memory-mapped.
        identities: whom to load, None = all; those who are not there are left out with a warning, as partition files
            often name people whom a copy of a data set lacks.
        types, views: what to load; None = all.
        dataset: a public data set, by name or description: its names are checked, and its official split gives the
            identities of `part`.
        partition: the file of a split, or one read already; wins over the public data set's rule.
        part: "train" or "test", of the data set or partition; without either, everybody is loaded.
        size: S, height and width of the frames; sequences of that size are taken as they are, others normalised.
        channels: C, maps per frame, as the model reads them: 1, the silhouettes, or 3: limbs, joints and silhouettes,
            joined by the names of each folder's files (`gaitsdk.maps.read_maps`).
        progress: called as progress(done, total).

    Raises:
        DatasetError: no tree there, no such type or view in it, other names than the data set's, no identity of those
            wanted, or not one usable file.
        OptionError: no such data set or part, a part of no split, or identities beside a split.
    """
    if part not in PARTS:
        raise OptionError("no such part", where="part", got=repr(part), expected=" or ".join(PARTS))
    split = dataset is not None or partition is not None
    if part != "train" and not split:
        raise OptionError("there is no split to have a part of", where="part", got=repr(part), fix="name the split")
    if split and identities is not None:
        raise OptionError(
            "identities and a split are given", where="identities", expected="one or the other", fix="leave one out"
        )
    described = public_dataset(dataset) if isinstance(dataset, str) else dataset

    def wanted_of(present: Sequence[str], kinds: Iterable[str], angles: Iterable[str]) -> set[str] | None:
        """Whom to load of those who are there."""
        if described is not None:
            described.check_names(present, kinds, angles, str(root))
        if not split:
            return None if identities is None else {str(each) for each in identities}
        chosen = _split(described, partition, present)
        _log_split(described, chosen, present, part, str(root))
        return set(chosen.train if part == "train" else chosen.test)

    if Path(root).is_file():
        packed = PackedSequences(root)
        wanted = wanted_of(packed.classes, set(packed.types.tolist()), set(packed.views.tolist()))
        packed.check_frames(size, channels)
        return _choose(packed, wanted, types, views)
    tree = SequenceTree(root, types=types, views=views)
    return _load(tree, wanted_of(tree.identities, tree.types, tree.views), size, channels, progress)


def _load(
    tree: SequenceTree, wanted: set[str] | None, size: int, channels: int, progress: Progress | None
) -> SequenceDataset:
    references = [each for each in tree if wanted is None or each.identity in wanted]
    skipped = skipped_folders(tree)
    kept, sequences = [], []
    for each, silhouettes in read_usable(references, size, channels, skipped, progress):
        kept.append(each)
        sequences.append(silhouettes)
    if not kept:
        raise nothing_usable(tree.root, len(references), skipped)
    names = [each.identity for each in kept], [each.type for each in kept], [each.view for each in kept]
    return SequenceDataset(sequences, *names, report=_report(tree.root, names[0], skipped, wanted))


def _choose(
    packed: PackedSequences, wanted: set[str] | None, types: Sequence[str] | None, views: Sequence[str] | None
) -> SequenceDataset:
    """The wanted sequences of a packed file, with the messages that a tree would have given."""
    mask = np.ones(len(packed), bool)
    for level, there, asked in (("types", packed.types, types), ("views", packed.views, views)):
        if asked is None:
            continue
        mask &= np.isin(there, list(asked))
        absent = sorted(set(asked) - set(there.tolist()))
        if absent and not np.isin(there, list(asked)).any():
            raise DatasetError(
                f"no sequence has any of these {level}",
                where=str(packed.path),
                got=", ".join(absent),
                expected=f"some of {', '.join(sorted(set(there.tolist()))[:8])}",
            )
        if absent:
            logger.warning("%s: %s that are not there: %s", packed.path, level, ", ".join(absent))
    if wanted is not None:
        mask &= np.isin(packed.identities, sorted(wanted))
    if not mask.any():
        raise nothing_usable(packed.path, 0, ())
    chosen = packed if mask.all() else packed.subset(mask)
    skipped: tuple[Skipped, ...] = () if packed.report is None else packed.report.skipped
    chosen.report = _report(packed.path, chosen.identities.tolist(), skipped, wanted)
    return chosen


def _split(
    described: PublicDataset | None, partition: Partition | str | os.PathLike[str] | None, present: Sequence[str]
) -> Partition:
    if described is not None:
        return described.split(present, partition)
    if isinstance(partition, Partition):
        return partition
    return Partition.read(partition or "")


def _log_split(
    described: PublicDataset | None, chosen: Partition, present: Sequence[str], part: str, where: str
) -> None:
    """Says who is in neither part, and how far a copy falls short of the official split."""
    outside = sorted(set(present) - set(chosen.train) - set(chosen.test))
    if outside:
        names = ", ".join(outside[:20]) + (", ..." if len(outside) > 20 else "")
        logger.warning("%s: %d identities are in neither part of the split: %s", where, len(outside), names)
    if described is not None:
        official = described.train if part == "train" else described.test
        found = len(set(chosen.train if part == "train" else chosen.test) & set(present))
        if found != official:
            logger.warning("%s: %d of the %d official %s identities are there", where, found, official, part)


def _report(source: Path, identities: Sequence[str], skipped: Sequence[Skipped], wanted: set[str] | None) -> LoadReport:
    """What was loaded, which is logged."""
    absent = tuple(sorted((wanted or set()) - set(identities)))
    count = None if wanted is None else len(wanted)
    report = LoadReport(str(source), len(identities), tuple(skipped), count, absent)
    logger.log(logging.WARNING if skipped or absent else logging.INFO, "%s", report.summary())
    return report


def from_synthetic(
    identities: Iterable[int],
    *,
    types: Sequence[str] = synthetic.TYPES,
    views: Sequence[str] = synthetic.VIEWS,
    frames: int = 30,
    seed: int = 0,
    noise: float = 0.0,
    workers: int = 1,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SequenceDataset:
    """Synthetic walkers, rendered once and memory-mapped from then on.

    Args:
        identities, types, views, frames, seed, noise, workers: as for `gaitsdk.synthetic.dataset`.
        cache: a folder for the rendered silhouettes; one file for each choice of the arguments and version of the
            generator. None keeps them in memory only.
        progress: called as progress(done, total).

    Returns:
        uint8 sequences [T, 64, 64], all of length `frames`.
    """
    people = [int(each) for each in identities]
    parameters = {
        "identities": people,
        "types": list(types),
        "views": list(views),
        "frames": frames,
        "seed": seed,
        "noise": noise,
        "generator": _generator_version(),
    }
    total = len(people) * len(types) * len(views)
    produced = synthetic.dataset(people, tuple(types), tuple(views), frames, seed, noise, workers)
    if cache is None:
        return _collect(_counted(produced, total, progress))
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:20]
    folder = Path(cache)
    stem = folder / f"synthetic-{key}"
    if not stem.with_suffix(".json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _render(stem, parameters, _counted(produced, total, progress), (total, frames))
    labels = json.loads(stem.with_suffix(".json").read_text())["sequences"]
    stacked = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    return SequenceDataset(stacked, *zip(*labels, strict=True))


def _collect(produced: Iterable[synthetic.SyntheticSequence]) -> SequenceDataset:
    items = list(produced)
    return SequenceDataset(
        [item.silhouettes for item in items],
        [item.identity for item in items],
        [item.type for item in items],
        [item.view for item in items],
    )


def _render(
    stem: Path, parameters: dict[str, Any], produced: Iterable[synthetic.SyntheticSequence], shape: tuple[int, int]
) -> None:
    """Writes STEM.npy, then STEM.json; the second appears only when the first is complete."""
    labels: list[list[str]] = []
    handle, temporary = tempfile.mkstemp(prefix=".synthetic-", suffix=".npy", dir=stem.parent)
    os.close(handle)
    try:
        stacked: Any = None
        for index, item in enumerate(produced):
            if stacked is None:
                size = item.silhouettes.shape[-1]
                stacked = _create(temporary, (*shape, size, size))
            stacked[index] = item.silhouettes
            labels.append([item.identity, item.type, item.view])
        if stacked is None:
            raise DatasetError("no synthetic sequence was asked for", where="from_synthetic", fix="name identities")
        stacked.flush()
        del stacked
        os.replace(temporary, stem.with_suffix(".npy"))
    finally:
        Path(temporary).unlink(missing_ok=True)
    document = json.dumps({"parameters": parameters, "sequences": labels})
    unfinished = stem.with_suffix(".json.tmp")
    unfinished.write_text(document)
    os.replace(unfinished, stem.with_suffix(".json"))


def _create(path: str, shape: tuple[int, ...]) -> Any:
    """A new memory-mapped .npy file, uint8."""
    open_memmap: Any = np.lib.format.open_memmap  # untyped in NumPy
    return open_memmap(path, "w+", np.uint8, shape)


def _counted(
    produced: Iterator[synthetic.SyntheticSequence], total: int, progress: Progress | None
) -> Iterator[synthetic.SyntheticSequence]:
    for done, item in enumerate(produced, 1):
        yield item
        if progress is not None:
            progress(done, total)


def _generator_version() -> str:
    """sha256 of the generator's source: a cache from before a change to it is not used."""
    folder = Path(inspect.getfile(synthetic)).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:20]
