"""The sequences of a tree or a packed file, and their features: computed once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import gaitsdk
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import DatasetError, SilhouetteError
from gaitsdk.pipeline import embed_many
from gaitsdk_training.data import from_tree
from gaitsdk_training.evaluation.ranking import Features
from gaitsdk_training.feature_file import FeatureFile

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.datasets import SequenceRef
    from gaitsdk.runtimes import NetworkRuntime

logger = logging.getLogger(__name__)

Silhouettes = NDArray[np.uint8]
#: Called as progress(done, total).
Progress = Callable[[int, int], None]

_CHUNK = 32  # sequences in memory at once


@dataclass(frozen=True)
class Sequences:
    """n sequences by name; each is read when it is needed.

    Attributes:
        root: the tree or the packed file.
        labels, types, views: n names each.
        load: gives sequence i as the network takes it: uint8 [T, S, S], or [T, C, S, S] for models of C maps. It raises
            SilhouetteError or DatasetError where the file cannot be used.
        stamp: says of sequence i which file it is of, and how that was last changed.
    """

    root: Path
    labels: Sequence[str]
    types: Sequence[str]
    views: Sequence[str]
    load: Callable[[int], Silhouettes]
    stamp: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """ "id/type/view"."""
        return f"{self.labels[index]}/{self.types[index]}/{self.views[index]}"

    def of(self, identities: Iterable[str]) -> Sequences:
        """Those of some identities.

        Raises:
            DatasetError: none of them is there.
        """
        wanted = set(identities)
        rows = [index for index, label in enumerate(self.labels) if label in wanted]
        if not rows:
            raise DatasetError(
                "no sequence of the wanted identities",
                where=str(self.root),
                got=f"identities {_first_of(set(self.labels))}",
                expected=f"some of {_first_of(wanted)}" if wanted else "identities in the test part",
                fix="check that the split belongs to these data",
            )
        return self.take(rows)

    def take(self, rows: Sequence[int]) -> Sequences:
        """Those at these positions."""
        labels, types, views = ([column[row] for row in rows] for column in (self.labels, self.types, self.views))
        return Sequences(
            self.root, labels, types, views, lambda row: self.load(rows[row]), lambda row: self.stamp(rows[row])
        )

    def digest(self) -> str:
        """sha256 of the names and of the files' sizes and times of change; the frames are not read."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(json.dumps([self.name(index), self.stamp(index)]).encode())
        return digest.hexdigest()


def open_sequences(root: str | os.PathLike[str], size: int, channels: int = 1) -> Sequences:
    """The sequences of a tree `<root>/<id>/<type>/<view>/*`, or of a packed file (`gaitsdk_training.data.pack`).

    Args:
        root: the tree or the packed file.
        size: S; sequences of a tree that have another size are normalised.
        channels: C, maps per frame.

    Raises:
        DatasetError: no such tree, nothing in it, or a packed file that is damaged or of another size.
    """
    path = Path(root)
    if path.is_file():
        packed = from_tree(path, size=size, channels=channels)
        labels, types, views = (each.tolist() for each in (packed.identities, packed.types, packed.views))
        stat = path.stat()
        return Sequences(path, labels, types, views, packed.__getitem__, lambda _: f"{stat.st_size} {stat.st_mtime_ns}")
    refs = list(SequenceTree(path))

    def load(index: int) -> Silhouettes:
        return refs[index].prepare(size, channels=channels, min_frames=1).silhouettes

    labels, types, views = ([getattr(each, level) for each in refs] for level in ("identity", "type", "view"))
    return Sequences(path, labels, types, views, load, lambda index: _stamp(refs[index]))


def embed_sequences(
    sequences: Sequences,
    bundle: Bundle,
    networks: NetworkRuntime,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Features, list[int], list[dict[str, str]], Path | None]:
    """Features of all sequences that can be used.

    Args:
        sequences: n of them.
        bundle: whose backbone it is. networks: that executes it.
        cache: folder in which the features are kept: one file for each (fingerprint, runtime, sequences), so that the
            next evaluation with another protocol or re-ranker embeds nothing, and one that was killed goes on. Files
            that have changed since are noticed by size and time. None keeps nothing.
        progress: called as progress(done, total).

    Returns:
        F [m, s, d] float32 (memory-mapped where there is a cache), the positions of the m sequences, what was skipped
        and why (`sequence`, `reason`), and the file of the features.

    Raises:
        DatasetError: no sequence can be used, or the cache cannot be written (a full disk).
    """
    skipped: dict[int, str] = {}
    shape = (len(sequences), bundle.strips, bundle.dims)
    path = None
    if cache is None or not len(sequences):
        features = np.empty(shape, np.float32)
        for start, rows in _embedded(sequences, bundle, networks, 0, skipped, progress):
            features[start : start + len(rows)] = rows
    else:
        source = {**_origin(bundle, networks), "data": sequences.digest()}
        path = Path(cache) / f"{hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]}.npy"
        with FeatureFile(path, shape, source) as file:
            if file.complete:
                logger.info("features read from %s", path)
            else:
                for _, rows in _embedded(sequences, bundle, networks, file.done, skipped, progress):
                    file.write(rows)
            features = file.read()
    # A sequence that cannot be used has a row of NaN, so that the file says of itself what it lacks.
    usable = ~np.isnan(features[:, 0, 0])
    for index in np.flatnonzero(~usable).tolist():
        if index not in skipped:  # by the run that wrote the file
            skipped[index] = _why(sequences, index)
    reasons = [{"sequence": sequences.name(index), "reason": skipped[index]} for index in sorted(skipped)]
    kept = np.flatnonzero(usable)
    if not len(kept):
        first = f", the first: {reasons[0]['reason']}" if reasons else ""
        got = f"{len(reasons)} unusable sequences{first}"
        raise DatasetError("no usable sequence", where=str(sequences.root), got=got)
    return features if usable.all() else features[kept], kept.tolist(), reasons, path


def _embedded(
    sequences: Sequences,
    bundle: Bundle,
    networks: NetworkRuntime,
    first: int,
    skipped: dict[int, str],
    progress: Progress | None,
) -> Iterator[tuple[int, Features]]:
    """Features from sequence `first` on, a chunk at a time; rows of NaN for those that cannot be used."""
    for start in range(first, len(sequences), _CHUNK):
        stop = min(start + _CHUNK, len(sequences))
        rows = np.full((stop - start, bundle.strips, bundle.dims), np.nan, np.float32)
        loaded: dict[int, Silhouettes] = {}
        for index in range(start, stop):
            try:
                loaded[index] = sequences.load(index)
            except (SilhouetteError, DatasetError) as error:
                skipped[index] = str(error)
        if loaded:
            handling = bundle.manifest.length_handling
            rows[[index - start for index in loaded]] = embed_many(
                networks.embed, list(loaded.values()), length_handling=handling
            )
        yield start, rows
        if progress is not None:
            progress(stop, len(sequences))


def _why(sequences: Sequences, index: int) -> str:
    try:
        sequences.load(index)
    except (SilhouetteError, DatasetError) as error:
        return str(error)
    return "it could not be used when the features were computed"


def _first_of(names: set[str], most: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", ... ({len(ordered)} in all)" if len(ordered) > most else "")


def _origin(bundle: Bundle, networks: NetworkRuntime) -> dict[str, str]:
    """What the features depend on besides the data: runtimes differ in the last digits, artefacts in precision."""
    artefact = bundle.artefact("backbone", networks.name) if networks.name in ("onnx", "torchscript") else None
    name = None if artefact is None else str(artefact.relative_to(bundle.path))
    return {
        "model": bundle.fingerprint,
        "runtime": networks.name,
        "artefact": "" if name is None else bundle.manifest.files[name].sha256,
        "gaitsdk": gaitsdk.__version__,  # of the normalisation
    }


def _stamp(reference: SequenceRef) -> str:
    """Names, sizes and times of change of the files in a sequence's folder."""
    try:
        with os.scandir(reference.path) as entries:
            files = sorted((each.name, each.stat()) for each in entries if not each.name.startswith("."))
    except OSError:  # it went away meanwhile: reading it will say so
        return ""
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in files])
