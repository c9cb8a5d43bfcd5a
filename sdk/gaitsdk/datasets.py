"""Data sets on disk: the field's tree `<root>/<identity>/<type>/<view>/` and its partition files.

tree = SequenceTree("CASIA-B-pkl", types=["nm-01", "nm-02"])
for ref in tree:
    silhouettes = ref.load()
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import DatasetError, InputError, SilhouetteError
from gaitsdk.frames import is_image
from gaitsdk.silhouettes import load_sequence

_LAYOUT = "<root>/<identity>/<type>/<view>/ with a .pkl or .npy file or PNG files in it"
_LEVELS = ("identity", "type", "view")
_ARRAYS = (".pkl", ".npy")


@dataclass(frozen=True, order=True)
class SequenceRef:
    """One sequence of a tree, not yet read.

    Attributes:
        identity, type, view: the names of its three folders.
        path: that folder.
    """

    identity: str
    type: str
    view: str
    path: Path

    def file(self) -> Path:
        """What `load` reads: the folder itself where it holds PNG files, else its one .pkl or .npy file. Of several
        (one per modality) the one with "sil" in its name.

        Raises:
            DatasetError: the folder holds nothing usable, or several files of which none or many are silhouettes.
        """
        files = _visible(self.path)
        arrays = [each for each in files if each.suffix.lower() in _ARRAYS]
        if not arrays:
            if any(is_image(each) for each in files):
                return self.path
            raise DatasetError(
                "the folder holds no sequence",
                where=str(self.path),
                got=_listed(files) or "an empty folder",
                expected="a .pkl or .npy file, or PNG files",
            )
        candidates = arrays if len(arrays) == 1 else _silhouettes_among(arrays)
        if len(candidates) != 1:
            raise DatasetError(
                "several files, and which holds the silhouettes is not clear",
                where=str(self.path),
                got=_listed(arrays),
                expected="one file, or one with 'sil' in its name",
                fix="read the wanted one with gaitsdk.silhouettes.load_sequence, or move the others away",
            )
        return candidates[0]

    def load(self) -> NDArray[np.uint8]:
        """The silhouettes or masks as they are on disk, uint8 0..255 `[T, H, W]` (0/1 comes scaled to 0/255).

        Raises:
            DatasetError: nothing usable in the folder, or it cannot be read.
        """
        source = self.file()
        try:
            return load_sequence(source)
        except SilhouetteError as error:
            raise DatasetError("the sequence cannot be read", where=str(source), got=str(error)) from error


class SequenceTree:
    """A data set in the layout of CASIA-B, sorted by identity, type and view; `len`, iteration, indexing.

    Folders are listed when the tree is made; sequences are read when they are loaded.

    Args:
        root: the folder of the identities' folders.
        identities, types, views: what to list; None = all. A name that the tree does not have is refused.

    Attributes:
        root: the folder.
        refs: its sequences.

    Raises:
        DatasetError: the root is missing, holds nothing, or has another depth; or a wanted name is not in it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        identities: Collection[str] | None = None,
        types: Collection[str] | None = None,
        views: Collection[str] | None = None,
    ) -> None:
        self.root = Path(root)
        wanted = [_names(name, value) for name, value in zip(_LEVELS, (identities, types, views), strict=True)]
        refs = list(_walk(self.root))
        for level, names in zip(_LEVELS, wanted, strict=True):
            if names is not None:
                _refuse_unknown(names, {getattr(ref, level) for ref in refs}, level, self.root)
        self.refs = tuple(
            ref
            for ref in refs
            if all(names is None or getattr(ref, level) in names for level, names in zip(_LEVELS, wanted, strict=True))
        )

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
        """Names of the identities, sorted."""
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
        both = sorted(set(train) & set(test))
        if both:
            raise DatasetError(
                "identities are both in training and test",
                where=where,
                got=", ".join(both[:5]),
                expected="disjoint sets",
                fix="take them out of one; figures measured on training identities mean nothing",
            )
        return cls(train, test, probe)


def _walk(root: Path) -> Iterator[SequenceRef]:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "there is no such folder"
        raise DatasetError(what, where=str(root), expected=_LAYOUT, fix="check the path")
    count = 0
    for identity in _folders(root):
        for kind in _folders(identity):
            for view in _folders(kind):
                count += 1
                yield _ref(view)
    if not count:
        raise DatasetError(
            "no sequence lies at the expected depth",
            where=str(root),
            got=_depth_found(root),
            expected=_LAYOUT,
            fix="pass the folder that holds the identities' folders",
        )


def _ref(view: Path) -> SequenceRef:
    """The leaf as a reference, once it is clear that it is a leaf with something in it."""
    entries = _visible(view)
    if not any(each.suffix.lower() in _ARRAYS or is_image(each) for each in entries):
        deeper = any(each.is_dir() for each in entries)
        raise DatasetError(
            "the tree is deeper than expected" if deeper else "the folder holds no sequence",
            where=str(view),
            got=_listed(entries) or "an empty folder",
            expected=_LAYOUT,
            fix="pass the folder that holds the identities' folders" if deeper else "remove the folder, or fill it",
        )
    return SequenceRef(view.parent.parent.name, view.parent.name, view.name, view)


def _depth_found(root: Path) -> str:
    """Where the first sequence file really lies."""
    for folder, _, names in os.walk(root):
        found = sorted(name for name in names if Path(name).suffix.lower() in (*_ARRAYS, ".png"))
        if found:
            relative = (Path(folder) / found[0]).relative_to(root)
            return f"{relative}, {len(relative.parts) - 1} folders deep instead of 3"
    return "no .pkl, .npy or PNG file anywhere below"


def _folders(folder: Path) -> list[Path]:
    return [each for each in _visible(folder) if each.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Entries by name, without hidden ones (.DS_Store, ._x, .ipynb_checkpoints)."""
    try:
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise DatasetError("the folder cannot be read", where=str(folder), got=error.strerror or str(error)) from error


def _silhouettes_among(files: list[Path]) -> list[Path]:
    """Files named after silhouettes. Where raw and aligned ones lie side by side, the choice is the user's."""
    return [each for each in files if "sil" in each.stem.lower()]


def _listed(paths: list[Path]) -> str:
    names = [each.name for each in paths[:6]]
    return ", ".join(names) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def _names(level: str, value: Collection[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not all(isinstance(each, str) for each in value):
        raise InputError(
            "not a collection of names", where=level, got=repr(value)[:100], expected='strings, like ["090"]'
        )
    return frozenset(value)


def _refuse_unknown(names: frozenset[str], known: set[str], level: str, root: Path) -> None:
    missing = sorted(names - known)
    if missing:
        raise DatasetError(
            f"the tree has no such {level}",
            where=str(root),
            got=", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else ""),
            expected="some of " + ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else ""),
        )


def _strings(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DatasetError(
            "not a list of names", where=f"{where}: {name}_SET", got=repr(value)[:100], expected='["001", "002", ...]'
        )
    return tuple(value)
