"""Which store serves which path or URI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gaitsdk.errors import GalleryError, InputError, OptionError
from gaitsdk.gallery.protocol import Gallery
from gaitsdk.gallery.sqlite import SqliteGallery

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle


def open_gallery(
    path_or_uri: str | os.PathLike[str] = ":memory:",
    *,
    fingerprint: str | None = None,
    strips: int | None = None,
    dims: int | None = None,
    metric: str | None = None,
    read_only: bool = False,
    create: bool = True,
    timeout: float = 5.0,
) -> Gallery:
    """Opens a gallery, or creates it.

    Args:
        path_or_uri: a file, `sqlite:///path/to/file`, or ":memory:" (gone when closed).
        fingerprint: of the model whose features it holds. Needed to create; checked against an existing gallery.
        strips, dims: s and d of a feature map `[s, d]`. Likewise.
        metric: "euclidean" or "cosine". Likewise; None = what the gallery has, "euclidean" for a new one.
        read_only: adding and deleting raise `GalleryError`; nothing is created.
        create: False = raise where nothing exists.
        timeout: seconds to wait for another process's write before `GalleryLockedError`.

    Returns:
        A store with the `Gallery` protocol; usable from several threads, also as a context manager.

    Raises:
        ModelMismatchError: the gallery holds another model's features, or other s, d or metric.
        GalleryCorruptError: the file is no gallery, is damaged, or has another format version.
        GalleryError: it does not exist and may not be created; a folder; no permission.
        OptionError: an option is impossible or missing, or no store serves that URI.
    """
    location = os.fspath(path_or_uri)
    scheme, separator, rest = location.partition("://")
    if separator:
        if scheme != "sqlite":
            raise OptionError(
                "no gallery store serves this URI",
                where="path_or_uri",
                got=repr(location),
                expected="a file path, sqlite:///path, or ':memory:'",
            )
        # As elsewhere: three slashes are a relative path, four an absolute one.
        location = rest.removeprefix("/") or ":memory:"
    return SqliteGallery(
        location,
        fingerprint=fingerprint,
        strips=strips,
        dims=dims,
        metric=metric,
        read_only=read_only,
        create=create,
        timeout=timeout,
    )


def default_gallery() -> Path:
    """The gallery file that `Recognizer.load()` and the command line share: `$GAITSDK_GALLERY`, else
    `gaitsdk/gallery.db` in the user's data folder (`$XDG_DATA_HOME` or `~/.local/share`)."""
    if chosen := os.environ.get("GAITSDK_GALLERY"):
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "gaitsdk" / "gallery.db"


def open_for(bundle: Bundle, path: str | os.PathLike[str] | None = None) -> Gallery:
    """The gallery at `path` (None = `default_gallery()`, whose folder is made) for the features of a bundle's model.

    Raises:
        InputError: an empty path. Others as of `open_gallery`.
    """
    place = str(default_gallery() if path is None else path)
    if not place:
        raise InputError("the path is empty", where="gallery", fix='pass a file, or ":memory:"')
    if path is None:
        try:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GalleryError(
                "the folder of the default gallery cannot be made",
                where=place,
                got=str(error),
                fix="set GAITSDK_GALLERY to a file that you may write, or pass gallery=...",
            ) from error
    return open_gallery(
        place, fingerprint=bundle.fingerprint, strips=bundle.strips, dims=bundle.dims, metric=bundle.metric
    )
