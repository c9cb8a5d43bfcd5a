"""One frame of a sequence as a short text, kept beside a gallery entry so that ranked lists can be drawn."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

from gaitsdk.checks import people_of

#: The gallery's metadata key.
KEY = "thumbnail"


def frame(silhouettes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame `[S, S]` with the widest stance of `[T, S, S]`, or of `[T, C, S, S]` its silhouette, the last map: it
    shows most of the gait."""
    silhouettes = people_of(silhouettes)
    columns: NDArray[np.int64] = (silhouettes > 127).any(axis=1).sum(axis=1)
    picture: NDArray[np.uint8] = silhouettes[int(columns.argmax())]
    return picture


def pack(picture: NDArray[np.uint8]) -> str:
    """`[S, S]` uint8 -> base64 of one bit per pixel (684 characters at S = 64)."""
    return base64.b64encode(np.packbits(picture > 127).tobytes()).decode("ascii")


def unpack(text: object, size: int) -> NDArray[np.uint8] | None:
    """The inverse: `[size, size]` in {0, 255}; None where `text` is no thumbnail of that size."""
    if not isinstance(text, str):
        return None
    try:
        bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    except (binascii.Error, ValueError):
        return None
    return (bits * np.uint8(255)).reshape(size, size) if bits.size == size * size else None
