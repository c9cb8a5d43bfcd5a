"""A whole data set in one memory-mapped file: nothing is parsed or checked again when a batch is loaded.

    pack("CASIA-B-pkl", "casiab.pack")              # once, and again whenever a file of the tree has changed
    data = from_tree("casiab.pack", dataset="casiab")

The file: a header of one page (what it is, its lengths, the index's sha256), the frames of all sequences one after
another as uint8, all maps of a frame side by side, and an index as JSON. Frames are kept as grey values, not as bits:
normalised silhouettes have grey edges (bits would change them), and where the file is in the page cache unpacking bits
takes longer than copying bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

import gaitsdk
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import DatasetError
from gaitsdk.file_lock import writing
from gaitsdk_training.data.dataset import FrameSlices, SequenceDataset, Silhouettes
from gaitsdk_training.data.reading import LoadReport, Progress, Skipped, nothing_usable, read_usable, skipped_folders

logger = logging.getLogger(__name__)

_MAGIC = b"GAITPACK"
_VERSION = 1
#: magic, version, S, frames, bytes of the index, sha256 of the index, C (0 in files of one map that are older than it).
_HEADER = struct.Struct("<8sIIQQ32sI")
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

    def check_frames(self, size: int, channels: int) -> None:
        """Refuses with DatasetError a file whose frames are not of this size or number of maps."""
        for what, name, found, wanted in (
            ("size", "size", self.size, size),
            ("number of maps per frame", "channels", self.channels, channels),
        ):
            if found != wanted:
                raise DatasetError(
                    f"the packed sequences have another {what}",
                    where=str(self.path),
                    got=str(found),
                    expected=str(wanted),
                    fix=f"pack the tree again with {name}={wanted}",
                )


def pack(
    tree: SequenceTree | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    size: int = 64,
    channels: int = 1,
    progress: Progress | None = None,
) -> PackedSequences:
    """Packs a tree into one file, unless the file is there already and no file of the tree has changed since.

    The file appears under its name when it is complete: a run that is killed leaves a hidden `.NAME.part`, which the
    next one overwrites. Of several processes one packs and the others wait for it.

    Args:
        tree: all of it is packed; choose identities, types and views when you open the file (`from_tree`).
        path: the file; its folder is made.
        size: S; sequences of that size are taken as they are, others normalised.
        channels: C, maps per frame (see `from_tree`).
        progress: called as progress(done, total) while it packs.

    Returns:
        The packed sequences. Files that cannot be used are left out and listed in `report.skipped`.

    Raises:
        DatasetError: not one usable file, the path is that of another file, or it cannot be written (a full disk).
    """
    source = tree if isinstance(tree, SequenceTree) else SequenceTree(tree)
    target = Path(path)
    sources = _hash_sources(source, size, channels)
    packed = _fresh(target, sources)  # before the lock, which cannot be had in a folder that is read-only
    if packed is None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with writing(target):
                packed = _fresh(target, sources)
                if packed is None:
                    _write(source, target, (size, channels), sources, progress)
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


def _write(tree: SequenceTree, target: Path, frame: tuple[int, int], sources: str, progress: Progress | None) -> None:
    """Writes the file beside its name and renames it."""
    part = target.with_name(f".{target.name}.part")
    skipped = skipped_folders(tree)
    columns: dict[str, list[Any]] = {name: [] for name in ("identities", "types", "views", "lengths")}
    try:
        with part.open("wb") as file:
            file.write(b"\0" * _PAGE)
            for each, silhouettes in read_usable(tree.refs, *frame, skipped, progress):
                file.write(np.ascontiguousarray(silhouettes).data)
                row = (each.identity, each.type, each.view, len(silhouettes))
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
            if not columns["lengths"]:
                raise nothing_usable(tree.root, len(tree), skipped)
            _finish(file, frame, sum(columns["lengths"]), {**columns, "sources": sources, "skipped": skipped})
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _finish(file: IO[bytes], frame: tuple[int, int], frames: int, index: dict[str, Any]) -> None:
    """Index and header; only now is the file one that can be opened."""
    index["skipped"] = [[each.path, each.reason] for each in index["skipped"]]
    encoded = json.dumps(index).encode()
    file.write(encoded)
    file.seek(0)
    size, channels = frame
    digest = hashlib.sha256(encoded).digest()
    file.write(_HEADER.pack(_MAGIC, _VERSION, size, frames, len(encoded), digest, channels))
    file.flush()
    os.fsync(file.fileno())


def _open(path: Path) -> tuple[dict[str, Any], Silhouettes, Callable[[int, int], None]]:
    """The index, the frames [N, S, S] or [N, C, S, S], and what fetches some of them."""
    try:
        start, length = _start(path), path.stat().st_size
    except OSError as error:
        raise DatasetError("the packed file cannot be read", where=str(path), got=error.strerror) from error
    if len(start) < _HEADER.size or start[: len(_MAGIC)] != _MAGIC:
        raise DatasetError("this is no packed file", where=str(path), fix="pack the tree: gaitsdk_training.data.pack")
    _, version, size, frames, index_bytes, digest, channels = _HEADER.unpack(start)
    if version != _VERSION:
        raise DatasetError(
            "a packed file of another version", where=str(path), got=version, expected=str(_VERSION), fix=_FIX
        )
    shape = (size, size) if channels <= 1 else (channels, size, size)
    frame_bytes = math.prod(shape)
    end = _PAGE + frames * frame_bytes
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
            begin = _PAGE + first * frame_bytes
            aligned = begin - begin % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, aligned, begin + count * frame_bytes - aligned)

    return json.loads(encoded), pixels.reshape(frames, *shape), prefetch


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER.size)


def _hash_sources(tree: SequenceTree, size: int, channels: int) -> str:
    """sha256 of what the packed file is made of: every file's path in the tree, size and time of change, and how."""
    how = f"{_VERSION} {gaitsdk.__version__} {size}" + (f" {channels}" if channels > 1 else "")
    digest = hashlib.sha256(f"{how}\n".encode())
    for each in tree:
        try:
            source = each.file() if channels == 1 else each.path  # all maps of the folder
            files = sorted(source.iterdir()) if source.is_dir() else [source]
            stats = [file.stat() for file in files]
        except (DatasetError, OSError):  # it went away meanwhile: reading it will say so
            files, stats = [], []
        names = [str(file.relative_to(tree.root)) for file in files or [each.path]]
        digest.update(json.dumps([names, [(one.st_size, one.st_mtime_ns) for one in stats]]).encode())
    return digest.hexdigest()
