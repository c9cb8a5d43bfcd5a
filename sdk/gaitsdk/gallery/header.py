"""What a gallery was made for, the options that name it, and making sure that a gallery is there to open."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gaitsdk.distance import check_metric
from gaitsdk.errors import GalleryError, ModelMismatchError, OptionError
from gaitsdk.gallery import database, entries

_LARGEST_MAP = 1 << 24


@dataclass(frozen=True)
class Header:
    """Stands in the gallery's file.

    Attributes:
        fingerprint: of the model whose features are kept.
        strips, dims: of a feature map.
        metric: "euclidean" or "cosine".
    """

    fingerprint: str
    strips: int
    dims: int
    metric: str

    def rows(self) -> tuple[str, int, int]:
        """The header's document, its checksum, and the checksum of an empty state."""
        document = json.dumps(asdict(self), sort_keys=True)
        return document, zlib.crc32(document.encode()), entries.state_crc(0, 0, 0, 0)


@dataclass(frozen=True)
class Wanted:
    """What a caller asks for; None = whatever the gallery has."""

    fingerprint: str | None
    strips: int | None
    dims: int | None
    metric: str | None

    def check(self) -> None:
        """Raises `OptionError` for values that no gallery has."""
        if self.fingerprint is not None and not (isinstance(self.fingerprint, str) and self.fingerprint):
            raise OptionError("not a fingerprint", where="fingerprint", got=repr(self.fingerprint), expected="text")
        for name, size in (("strips", self.strips), ("dims", self.dims)):
            whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
            if size is not None and not (whole and 1 <= size <= _LARGEST_MAP):
                raise OptionError("not a size", where=name, got=repr(size), expected="an integer >= 1")
        if self.metric is not None:
            check_metric(self.metric)

    def new_header(self, location: str) -> Header:
        """Of a gallery to create; `OptionError` where something is missing."""
        if self.fingerprint is None or self.strips is None or self.dims is None:
            missing = [name for name in ("fingerprint", "strips", "dims") if getattr(self, name) is None]
            raise OptionError(
                f"a new gallery needs {', '.join(missing)}",
                where=location,
                fix="pass those of the model's bundle: fingerprint=bundle.fingerprint, strips=..., dims=...",
            )
        return Header(self.fingerprint, int(self.strips), int(self.dims), self.metric or "euclidean")

    def match(self, header: Header, location: str) -> None:
        """Raises `ModelMismatchError` where the gallery is not what is asked for."""
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        different = [name for name, value in asked.items() if getattr(header, name) != value]
        if different:
            raise ModelMismatchError(
                f"the gallery was made with another {' and '.join(different)}",
                where=location,
                got=", ".join(f"{name} {getattr(header, name)}" for name in different) + " in the gallery",
                expected=", ".join(f"{name} {asked[name]}" for name in different),
                fix="open it with the model that made it, or enroll everyone anew into another gallery",
            )


def prepare(location: str, wanted: Wanted, *, create: bool) -> None:
    """Sees to it that there is a file to open, creating the gallery where it may."""
    path = Path(location)
    if path.is_dir():
        raise GalleryError("a folder, no gallery", where=location, fix="give a file's path, such as people.db")
    if path.exists():
        return
    if not create:
        raise GalleryError("no gallery there", where=location, fix="check the path, or open it with create=True")
    if not path.parent.is_dir():
        raise GalleryError(f"its folder {path.parent} does not exist", where=location, fix="create that folder first")
    database.create(location, *wanted.new_header(location).rows())
