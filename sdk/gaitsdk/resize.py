"""Bicubic interpolation of one person's mask, as image libraries do it for 8-bit pictures, in plain NumPy."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Columns of a resized frame; more come from a strip of noise in a very wide frame, and would fill the memory.
_MAX_WIDTH = 2**16


def scale_and_centre(crop: NDArray[np.uint8], left: int, width: int, size: int) -> NDArray[np.uint8] | None:
    """Resizes a frame to `size` rows, keeping its aspect, and cuts `size` columns around the middle of its mass.

    Args:
        crop: uint8 `[h, w]`, what of the frame is not zero; its rows are all that count, so it becomes `size` rows.
        left: the column of the frame where the crop begins.
        width: the frame's columns, which decide where between pixels the result is sampled.

    Returns:
        uint8 `[size, size]`; None where there is no middle: the first column holds half of the mass,
        or nothing is left.
    """
    new_width = size * width // len(crop)
    if not 1 <= new_width <= _MAX_WIDTH:
        return None
    indices, weights = (_taps if new_width <= 4096 else _taps.__wrapped__)(width, new_width)  # keep the cache small
    # Columns left of the crop and right of it are zero, so only those that read from it are computed.
    first = int(np.searchsorted(indices[:, 3], left))
    last = int(np.searchsorted(indices[:, 0], left + crop.shape[1]))
    rows = _interpolate(crop, *_taps(len(crop), size))
    padded = np.zeros((crop.shape[1] + 2, size))
    padded[1:-1] = rows.T
    columns = np.clip(indices[first:last] - (left - 1), 0, crop.shape[1] + 1)
    sums = _interpolate(padded, columns, weights[first:last])
    scaled = np.clip(np.rint(sums), 0, 255).astype(np.uint8)  # [columns, S]
    mass = scaled.sum(axis=1, dtype=np.int64).cumsum()
    if not len(mass) or not mass[-1]:
        return None
    centre = first + int(np.searchsorted(mass * 2, mass[-1], side="right"))
    if centre == 0:
        return None
    result = np.zeros((size, size), np.uint8)
    begin = centre - size // 2
    low, high = max(first, begin), min(last, begin + size)
    result[:, low - begin : high - begin] = scaled[low - first : high - first].T
    return result


def _interpolate(lines: NDArray[Any], indices: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums of four lines each: `[n, m]`, `[k, 4]`, `[k, 4]` -> `[k, m]`."""
    total: NDArray[np.float64] = lines[indices[:, 0]] * weights[:, 0, None]
    for tap in range(1, 4):
        total += lines[indices[:, tap]] * weights[:, tap, None]
    return total


@functools.lru_cache(maxsize=512)
def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where and how strongly each of `new` pixels reads from `old` ones: indices and weights `[new, 4]`.

    Cubic convolution (Keys 1981, eq. 4) with a = -0.75, pixel centres at half-integers, the border pixel repeated.
    """
    a = -0.75
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    base = np.floor(position)
    t = position - base
    far = np.stack([t + 1, 2 - t])
    near = np.stack([t, 1 - t])
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    weights = np.stack([outer[0], inner[0], inner[1], outer[1]], axis=1)
    indices = np.clip(base.astype(np.int64)[:, None] + np.arange(-1, 3), 0, old - 1)
    return indices, weights
