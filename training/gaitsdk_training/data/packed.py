"""A whole data set in one memory-mapped file: nothing is parsed or checked again when a batch is loaded.

    pack("CASIA-B-pkl", "casiab.pack")              # once, and again whenever a file of the tree has changed
    data = from_tree("casiab.pack", dataset="casiab")

The file: a header of one page (what it is, its lengths, the index's sha256), the frames of all sequences one after
another as uint8, and an index as JSON. Frames are kept as grey values, not as bits: normalised silhouettes have grey
edges (bits would change them), and where the file is in the page cache unpacking bits takes longer than copying bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

import gaitsdk
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import DatasetError
from gaitsdk_training.data.dataset import FrameSlices, SequenceDataset, Silhouettes
from gaitsdk_training.data.reading import LoadReport, Progress, Skipped, nothing_usable, read_usable, skipped_folders

logger = logging.getLogger(__name__)

_MAGIC = b"GAITPACK"
_VERSION = 1
#: magic, version, S, frames, bytes of the index, sha256 of the index.
_HEADER = struct.Struct("<8sIIQQ32s")
_PAGE = 4096  # the frames begin here, so that a frame of 64 x 64 is a page
_FIX = "delete the file and pack the tree again"


class PackedSequences(SequenceDataset):
    """The sequences of a packed file, memory-mapped: a data set like any other.

    Args:
        path: written by `pack`.

    Attributes:
        path: the file.
        sources: sha256 of the list of files (path, size, time of change) that it was made of.

    Raises:
        DatasetError: missing, no packed file, of another version, cut off or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index, frames, prefetch = _open(self.path)
        self.sources = str(index["sources"])
        lengths = np.array(index["lengths"], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        names = index["identities"], index["types"], index["views"]
        skipped = tuple(Skipped(*each) for each in index["skipped"])
        report = LoadReport(str(self.path), len(lengths), skipped)
        super().__init__(FrameSlices(frames, starts, lengths, prefetch), *names, report=report)


def pack(
    tree: SequenceTree | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    size: int = 64,
    progress: Progress | None = None,
) -> PackedSequences:
    """Packs a tree into one file, unless the file is there already and no file of the tree has changed since.

    The file appears under its name when it is complete: a run that is killed leaves a hidden `.NAME.part`, which the
    next one overwrites. Of several processes one packs and the others wait for it.

    Args:
        tree: all of it is packed; choose identities, types and views when you open the file (`from_tree`).
        path: the file; its folder is made.
        size: S; sequences of that size are taken as they are, others normalised.
        progress: called as progress(done, total) while it packs.

    Returns:
        The packed sequences. Files that cannot be used are left out and listed in `report.skipped`.

    Raises:
        DatasetError: not one usable file, the path is that of another file, or it cannot be written (a full disk).
    """
    source = tree if isinstance(tree, SequenceTree) else SequenceTree(tree)
    target = Path(path)
    sources = _hash_sources(source, size)
    packed = _fresh(target, sources)  # before the lock, which cannot be had in a folder that is read-only
    if packed is None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target):
                packed = _fresh(target, sources)
                if packed is None:
                    _write(source, target, size, sources, progress)
        except OSError as error:
            raise DatasetError(
                "the packed file cannot be written",
                where=str(target),
                got=error.strerror or str(error),
                fix="free some space, or choose another folder",
            ) from error
    packed = packed or PackedSequences(target)
    if packed.report is not None and packed.report.skipped:
        logger.warning("%s", packed.report.summary())
    return packed


def _fresh(target: Path, sources: str) -> PackedSequences | None:
    """What is there already, where it is whole and made of these files.

    Raises:
        DatasetError: the file is something else, which must not be overwritten.
    """
    if not target.exists():
        return None
    if target.is_dir() or _start(target)[: len(_MAGIC)] != _MAGIC:
        raise DatasetError(
            "is something else than a packed file", where=str(target), fix="choose another name, or delete it"
        )
    try:
        packed = PackedSequences(target)
    except DatasetError as error:
        logger.warning("packing again: %s", error)
        return None
    if packed.sources != sources:
        logger.info("packing again, for the tree has changed: %s", target)
        return None
    return packed


def _write(tree: SequenceTree, target: Path, size: int, sources: str, progress: Progress | None) -> None:
    """Writes the file beside its name and renames it."""
    part = target.with_name(f".{target.name}.part")
    skipped = skipped_folders(tree)
    columns: dict[str, list[Any]] = {name: [] for name in ("identities", "types", "views", "lengths")}
    try:
        with part.open("wb") as file:
            file.write(b"\0" * _PAGE)
            for each, silhouettes in read_usable(tree.refs, size, skipped, progress):
                file.write(np.ascontiguousarray(silhouettes).data)
                row = (each.identity, each.type, each.view, len(silhouettes))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
            if not columns["lengths"]:
                raise nothing_usable(tree.root, len(tree), skipped)
            _finish(file, size, sum(columns["lengths"]), {**columns, "sources": sources, "skipped": skipped})
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _finish(file: IO[bytes], size: int, frames: int, index: dict[str, Any]) -> None:
    """Index and header; only now is the file one that can be opened."""
    index["skipped"] = [[each.path, each.reason] for each in index["skipped"]]
    encoded = json.dumps(index).encode()
    file.write(encoded)
    file.seek(0)
    file.write(_HEADER.pack(_MAGIC, _VERSION, size, frames, len(encoded), hashlib.sha256(encoded).digest()))
    file.flush()
    os.fsync(file.fileno())


def _open(path: Path) -> tuple[dict[str, Any], Silhouettes, Callable[[int, int], None]]:
    """The index, the frames [N, S, S], and what fetches some of them."""
    try:
        start, length = _start(path), path.stat().st_size
    except OSError as error:
        raise DatasetError("the packed file cannot be read", where=str(path), got=error.strerror) from error
    if len(start) < _HEADER.size or start[: len(_MAGIC)] != _MAGIC:
        raise DatasetError("this is no packed file", where=str(path), fix="pack the tree: gaitsdk_training.data.pack")
    _, version, size, frames, index_bytes, digest = _HEADER.unpack(start)
    if version != _VERSION:
        raise DatasetError(
            "a packed file of another version", where=str(path), got=version, expected=str(_VERSION), fix=_FIX
        )
    end = _PAGE + frames * size * size
    if length != end + index_bytes or not frames or not size:
        raise DatasetError(
            "the packed file is damaged",
            where=str(path),
            got=f"{length} bytes",
            expected=f"{end + index_bytes}",
            fix=_FIX,
        )
    with path.open("rb") as file:
        file.seek(end)
        encoded = file.read(index_bytes)
        mapped = mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ)
    if hashlib.sha256(encoded).digest() != digest:
        raise DatasetError("the packed file is damaged", where=str(path), got="an index that was changed", fix=_FIX)
    pixels = np.frombuffer(mapped, np.uint8, end - _PAGE, _PAGE)

    def prefetch(first: int, count: int) -> None:
        # Without it, each frame is a page fault of its own, and a cold file is slower than the pickles.
        if hasattr(mmap, "MADV_WILLNEED"):
            begin = _PAGE + first * size * size
            aligned = begin - begin % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, aligned, begin + count * size * size - aligned)

    return json.loads(encoded), pixels.reshape(frames, size, size), prefetch


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER.size)


def _hash_sources(tree: SequenceTree, size: int) -> str:
    """sha256 of what the packed file is made of: every file's path in the tree, size and time of change, and how."""
    digest = hashlib.sha256(f"{_VERSION} {gaitsdk.__version__} {size}\n".encode())
    for each in tree:
        try:
            source = each.file()
            files = sorted(source.iterdir()) if source.is_dir() else [source]
            stats = [file.stat() for file in files]
        except (DatasetError, OSError):  # it went away meanwhile: reading it will say so
            files, stats = [], []
        names = [str(file.relative_to(tree.root)) for file in files or [each.path]]
        digest.update(json.dumps([names, [(one.st_size, one.st_mtime_ns) for one in stats]]).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that is killed."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that packs %s", target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
