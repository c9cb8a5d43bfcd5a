"""Where training sequences come from: a CASIA-B-style tree, or synthetic walkers with a cache on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaitsdk import synthetic
from gaitsdk.errors import DatasetError, SilhouetteError
from gaitsdk_training.data.dataset import SequenceDataset

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def from_tree(
    root: str | os.PathLike[str],
    *,
    identities: Iterable[str] | None = None,
    types: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    size: int = 64,
    progress: Progress | None = None,
) -> SequenceDataset:
    """Loads `<root>/<id>/<type>/<view>/*`: all of it, or the named identities, types and views.

    A sequence that cannot be used (no person in any frame, for example) is left out with a warning that names it.

    Args:
        root: the tree.
        identities: whom to load, None = all; those who are not there are left out with a warning, as partition files
            often name people whom a copy of a data set lacks.
        types, views: what to load; None = all.
        size: S, height and width of the frames; sequences of that size are taken as they are, others normalised.
        progress: called as progress(done, total).

    Raises:
        DatasetError: no tree there, no such type or view in it, no identity of those wanted, or an unreadable file.
    """
    from gaitsdk.datasets import SequenceTree
    from gaitsdk.silhouettes import prepare

    wanted = None if identities is None else {str(each) for each in identities}
    references = [
        each for each in SequenceTree(root, types=types, views=views) if wanted is None or each.identity in wanted
    ]
    if wanted is not None and (absent := sorted(wanted - {each.identity for each in references})):
        logger.warning("%d of %d wanted identities are not there: %s", len(absent), len(wanted), ", ".join(absent[:20]))
    kept, sequences = [], []
    for done, each in enumerate(references, 1):
        try:
            sequences.append(prepare(each.load(), size, min_frames=1).silhouettes)
            kept.append(each)
        except SilhouetteError as error:
            logger.warning("left out %s/%s/%s: %s", each.identity, each.type, each.view, error)
        if progress is not None:
            progress(done, len(references))
    if not kept:
        raise DatasetError(
            "no usable sequence",
            where=str(root),
            got=f"{len(references)} sequences of the wanted identities, types and views",
            expected="at least one",
            fix="check the folder, and that the partition's identities are named as its folders are",
        )
    return SequenceDataset(
        sequences, [each.identity for each in kept], [each.type for each in kept], [each.view for each in kept]
    )


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
