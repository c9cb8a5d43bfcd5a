"""Data sets on disk: the field's tree `<root>/<identity>/<type>/<view>/` and its partition files.

    tree = SequenceTree("CASIA-B-pkl", types=["nm-01", "nm-02"])
    for ref in tree:
        silhouettes = ref.load()

Only names are read when a tree is made; nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.archives import read_archive
from gaitsdk.checks import MIN_FRAMES
from gaitsdk.errors import DatasetError, InputError
from gaitsdk.frames import image_names
from gaitsdk.maps import ARRAYS, located, map_of

if TYPE_CHECKING:
    from gaitsdk.silhouettes import Normalised

logger = logging.getLogger(__name__)

_LAYOUT = "<root>/<identity>/<type>/<view>/ with one .pkl, .npy or .npz file or PNG files in it"
_LEVELS = ("identities", "types", "views")
_DEPTH = 3
#: Where no sequence is found, folders are searched for the data down to here, and no more of them than this.
_DEEPEST, _MOST_FOLDERS = 7, 2000


@dataclass(frozen=True, order=True)
class SequenceRef:
    """One sequence of a tree, not yet read.

    Attributes:
        identity: who walks, for example "001".
        type: the condition, for example "nm-01".
        view: the camera, for example "090".
        path: the folder of these three names.
    """

    identity: str
    type: str
    view: str
    path: Path

    def file(self) -> Path:
        """What `load` reads: the folder itself where it holds images, else its .pkl, .npy or .npz file. Of several
        (one per modality) the one with "sil" in its name; of several of those the one with "aligned".

        Raises:
            DatasetError: nothing usable in the folder, or which file holds the silhouettes is not clear.
        """
        folders, files = _listing(self.path)
        data = _data(files)
        if not data:
            got, expected = _short(folders + files) or "an empty folder", "a .pkl, .npy or .npz file, or PNG files"
            raise DatasetError("the folder holds no sequence", where=str(self.path), got=got, expected=expected)
        return _chosen(self.path, data)

    def load(self) -> NDArray[np.uint8]:
        """The silhouettes or masks as they are on disk, not normalised.

        Returns:
            uint8 0..255 `[T, H, W]`; 0/1 masks come scaled to 0/255.

        Raises:
            DatasetError: nothing usable in the folder; a file is unreadable, damaged, or a pickle of anything else
                than numbers.
            SilhouetteError: as one of its subclasses: it can be read, but is no silhouette sequence.
        """
        from gaitsdk.silhouettes import load_sequence

        source = self.file()
        with located(source):
            return load_sequence(read_archive(source) if _suffix(source.name) == ".npz" else source)

    def prepare(self, size: int = 64, *, channels: int = 1, min_frames: int = MIN_FRAMES) -> Normalised:
        """What a model of this input reads (`gaitsdk.silhouettes.prepare`): of several maps per frame, those of the
        folder's files, joined by their names (`gaitsdk.maps.read_maps`). Raises: as `load`, and for the frames."""
        from gaitsdk.silhouettes import prepare

        return prepare(self.load() if channels == 1 else self.path, size, channels=channels, min_frames=min_frames)


class SequenceTree:
    """A data set in the layout of CASIA-B, sorted by (identity, type, view); `len`, iteration, indexing.

    Folders are listed when the tree is made; sequences are read when they are loaded. Hidden files and folders are
    ignored. Folders without data, which CASIA-B has, and data at another depth are left out with a warning and listed
    in `skipped`; a tree with nothing else is an error.

    Args:
        root: the folder of the identities' folders.
        identities, types, views: what to list; None = all. Names that the tree does not have are left out with a
            warning, as partition files name identities that a copy may lack, unless nothing matches at all.

    Attributes:
        root: the folder.
        refs: its sequences.
        skipped: the folders and files that were left out, each with the reason.

    Raises:
        DatasetError: the root is missing, a file, unreadable, empty, or has another depth; which file of a folder
            holds the silhouettes is not clear; or nothing matches.
        InputError: a filter is not a collection of names.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        identities: Iterable[str] | None = None,
        types: Iterable[str] | None = None,
        views: Iterable[str] | None = None,
    ) -> None:
        self.root = Path(root)
        wanted = {name: _names(name, value) for name, value in zip(_LEVELS, (identities, types, views), strict=True)}
        if not self.root.is_dir():
            what = "is a file, not a folder" if self.root.exists() else "there is no such folder"
            raise DatasetError(what, where=str(self.root), expected=_LAYOUT, fix="check the path")
        scan = _Scan(self.root, wanted)
        if not scan.refs:
            raise scan.nothing_found()
        scan.warn()
        self.refs, self.skipped = tuple(scan.refs), tuple(scan.skipped)

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[SequenceRef]:
        return iter(self.refs)

    def __getitem__(self, index: int) -> SequenceRef:
        return self.refs[index]

    def __repr__(self) -> str:
        return f"SequenceTree({str(self.root)!r}: {len(self)} sequences of {len(self.identities)} identities)"

    @property
    def identities(self) -> tuple[str, ...]:
        """Names of the identities that have a sequence, sorted."""
        return self._of("identity")

    @property
    def types(self) -> tuple[str, ...]:
        """Names of the types, sorted."""
        return self._of("type")

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, sorted."""
        return self._of("view")

    def _of(self, level: str) -> tuple[str, ...]:
        return tuple(sorted({getattr(ref, level) for ref in self.refs}))


class _Scan:
    """One walk through the folders, with what is needed to say why it found nothing."""

    def __init__(self, root: Path, wanted: dict[str, frozenset[str] | None]) -> None:
        self.root, self.wanted = root, wanted
        self.present: dict[str, set[str]] = {level: set() for level in _LEVELS}
        self.refs: list[SequenceRef] = []
        self.skipped: list[str] = []
        for identity in self._folders(root, "identities"):
            for kind in self._folders(root / identity, "types"):
                for view in self._folders(root / identity / kind, "views"):
                    path = root / identity / kind / view
                    if self._usable(path):
                        self.refs.append(SequenceRef(identity, kind, view, path))

    def _folders(self, folder: Path, level: str) -> list[str]:
        """The wanted folders, sorted."""
        names, files = _listing(folder)
        data = _data(files)
        if data:
            self.skipped.append(f"{folder / data[0]}: a data file at the wrong depth ({len(data)} in this folder)")
        elif not names:
            self.skipped.append(f"{folder}: no folder in it")
        self.present[level].update(names)
        wanted = self.wanted[level]
        return [name for name in names if wanted is None or name in wanted]

    def _usable(self, folder: Path) -> bool:
        names, files = _listing(folder)
        data = _data(files)
        if not data:
            got = _short(files) or "an empty folder"
            self.skipped.append(f"{folder}: {'folders instead of data' if names else f'no data ({got})'}")
            return False
        _chosen(folder, data)  # an unclear choice is refused now, not after hours of work
        return True

    def nothing_found(self) -> DatasetError:
        where = str(self.root)
        found = _find_data(self.root)
        if found is None:
            names, files = _listing(self.root)
            got = f"{_short(names + files)}, but no such file" if names or files else "an empty folder"
            return DatasetError("the tree holds no data", where=where, got=got, expected=_LAYOUT, fix="check the path")
        if len(found.relative_to(self.root).parts) != _DEPTH + 1:
            return _wrong_depth(self.root, found)
        for level, wanted in self.wanted.items():
            present = self.present[level]
            # Types are listed for matching identities only, and views for matching types: the first level without a
            # match is the reason.
            if wanted is not None and present and not wanted & present:
                return DatasetError(
                    f"no sequence has any of these {level}",
                    where=where,
                    got=_short(wanted) or "an empty choice",
                    expected=f"some of {_short(present)}",
                    fix=f"choose {level} that the tree has, spelled as its folders are",
                )
        got = _short(self.skipped, 3)
        return DatasetError("what matches holds no data", where=where, got=got, expected=_LAYOUT, fix="choose others")

    def warn(self) -> None:
        if self.skipped:
            logger.warning("%s: %d left out: %s", self.root, len(self.skipped), _short(self.skipped, 3))
        for level, wanted in self.wanted.items():
            absent = (wanted or frozenset()) - self.present[level]
            if absent:
                logger.warning("%s: %s that are not there: %s", self.root, level, _short(absent))


@dataclass(frozen=True)
class Partition:
    """Which identities train and which test, as the field's partition files say.

    Attributes:
        train, test: identities, in the file's order; never in both.
        probe: "identity-type-view" of the probe sequences, where the protocol names them; else empty.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    probe: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Partition:
        """Reads `{"TRAIN_SET": [...], "TEST_SET": [...]}`, perhaps with a `PROBE_SET`.

        Raises:
            DatasetError: missing, unreadable, no such file, or an identity both in training and test.
        """
        where, expected = str(path), '{"TRAIN_SET": ["001", ...], "TEST_SET": ["075", ...]}'
        try:
            document: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            got = f"{type(error).__name__}: {error}"
            raise DatasetError("the partition cannot be read", where=where, got=got, expected=expected) from error
        if not isinstance(document, dict) or not {"TRAIN_SET", "TEST_SET"} <= document.keys():
            got = f"the keys {', '.join(map(str, document))}"[:200] if isinstance(document, dict) else "no object"
            raise DatasetError("this is no partition", where=where, got=got, expected=expected)
        train, test, probe = (
            _strings(document.get(f"{name}_SET", []), name, where) for name in ("TRAIN", "TEST", "PROBE")
        )
        if both := sorted(set(train) & set(test)):
            raise DatasetError(
                "identities are both in training and test",
                where=where,
                got=", ".join(both[:5]),
                expected="disjoint sets",
                fix="take them out of one; figures measured on training identities mean nothing",
            )
        return cls(train, test, probe)


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """Names of (folders, files), sorted, without hidden ones (.DS_Store, ._x, .ipynb_checkpoints)."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        got = error.strerror or str(error)
        raise DatasetError("the folder cannot be read", where=str(folder), got=got, fix="check its rights") from error
    return sorted(folders), sorted(files)


def _data(files: Collection[str]) -> list[str]:
    """Array and PNG files; other images only where there are none of these, for they may be previews."""
    arrays = [name for name in files if _suffix(name) in ARRAYS]
    return sorted(arrays + [name for name in image_names(files) if not arrays or _suffix(name) == ".png"])


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _chosen(folder: Path, data: list[str]) -> Path:
    """The array file with the silhouettes or, where there are image files only, the folder."""
    arrays = [name for name in data if _suffix(name) in ARRAYS]
    images = len(data) - len(arrays)
    if not arrays or (images and all(map_of(name) not in (None, "silhouettes") for name in arrays)):
        return folder  # skeletons beside images: the images are the silhouettes
    silhouettes = [name for name in arrays if "sil" in os.path.splitext(name)[0].lower()]
    # CASIA-B* keeps raw and normalised silhouettes side by side; the normalised ones are called aligned.
    aligned = [name for name in silhouettes if "aligned" in name.lower()]
    for candidates in (arrays, silhouettes, aligned):
        if len(candidates) == 1 and not images:
            return folder / candidates[0]
    raise DatasetError(
        "which file holds the silhouettes is not clear",
        where=str(folder),
        got=_short(arrays) + (f" and {images} PNG files" if images else ""),
        expected="one .pkl, .npy or .npz file, or one with 'sil' in its name, or PNG files only",
        fix="rename the file of the silhouettes so that it contains 'sil', or move the others away",
    )


def _find_data(root: Path) -> Path | None:
    """A data file at the right depth, else one at another, else None; depth first, because trees are wide."""
    elsewhere: Path | None = None
    waiting, seen = [(root, 0)], 0
    while waiting and seen < _MOST_FOLDERS:
        seen += 1
        folder, depth = waiting.pop()
        names, files = _listing(folder)
        data = _data(files)
        if data and depth == _DEPTH:
            return folder / data[0]
        if data and elsewhere is None:
            elsewhere = folder / data[0]
        if depth < _DEEPEST:
            waiting += [(folder / name, depth + 1) for name in reversed(names)]
    return elsewhere


def _wrong_depth(root: Path, example: Path) -> DatasetError:
    parts = example.relative_to(root).parts
    depth = len(parts) - 1
    if depth < _DEPTH:
        above = list(root.resolve().parents)[: _DEPTH - depth]
        fix = "put the data into such folders"
        if len(above) == _DEPTH - depth and _looks_like_a_root(above[-1]):
            fix = f"pass {above[-1]} if that is the root, or {fix}"
    else:
        fix = f"pass {root.joinpath(*parts[: depth - _DEPTH])}"
    return DatasetError(
        "the folders have the wrong depth",
        where=str(root),
        got=f"data {depth} folders below the root ({Path(*parts)})",
        expected=f"{_DEPTH}: {_LAYOUT}",
        fix=fix,
    )


def _looks_like_a_root(folder: Path) -> bool:
    """Whether most folders in it lead to data three levels below; the disk's root leads to data, too."""
    try:
        identities = _listing(folder)[0][:20]
        return sum(_leads_to_data(folder / name, _DEPTH - 1) for name in identities) * 2 > len(identities)
    except DatasetError:  # others' folders on the way: no place for a data set
        return False


def _leads_to_data(folder: Path, levels: int) -> bool:
    names, files = _listing(folder)
    return any(_leads_to_data(folder / name, levels - 1) for name in names[:3]) if levels else bool(_data(files))


def _names(level: str, value: Iterable[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    listed = [value] if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) else list(value)
    if isinstance(value, (str, bytes)) or not all(isinstance(each, str) for each in listed):
        got = repr(value)[:100]
        raise InputError("not a collection of names", where=level, got=got, expected='strings, like ["090"]')
    return frozenset(listed)


def _strings(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        where, got = f"{where}: {name}_SET", repr(value)[:100]
        raise DatasetError("not a list of names", where=where, got=got, expected='["001", "002", ...]')
    return tuple(value)


def _short(names: Collection[str], most: int = 8) -> str:
    """The first names, and how many there are."""
    ordered = sorted(names)
    text = ", ".join(ordered[:most])
    return text if len(ordered) <= most else f"{text}, ... ({len(ordered)} in all)"
