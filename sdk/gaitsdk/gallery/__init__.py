"""Galleries: who is enrolled, durably, and who is nearest to a probe.

`Gallery` is the protocol, `Gallery.open(path_or_uri)` gives a store that has it; `SqliteGallery` is the embedded one.
"""

from __future__ import annotations

from gaitsdk.gallery.protocol import Gallery
from gaitsdk.gallery.sqlite import SqliteGallery
from gaitsdk.gallery.stores import open_gallery

__all__ = ["Gallery", "SqliteGallery", "open_gallery"]
