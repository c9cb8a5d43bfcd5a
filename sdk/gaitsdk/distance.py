"""Distances between strip feature maps `F [s, d]`: the mean over strips of a per-strip distance.

* "euclidean": mean over strips of `||x_s - y_s||`. Never the norm of the concatenation.
* "cosine": 1 - mean over strips of `cos(x_s, y_s)`. A strip is divided by `max(norm, 1e-12)`, so one without a
  direction (all zeros) has similarity 0 to everything.

`pairwise` is the fast form for many pairs (matrix products), `paired` the exact one for few (direct differences).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import InputError, OptionError

Features = NDArray[np.float32]

METRICS = ("euclidean", "cosine")
#: Norms below this are no direction; "cosine" divides by at least this.
SMALLEST_NORM = 1e-12
#: Largest magnitude of a feature: the squares of 4,096 such values still have a finite float32 sum.
LARGEST_VALUE = 1e17
#: Share of ||x||^2 + ||y||^2 below which a float32 product cancels too much, so that the block is done in float64.
_CANCELLATION = 0.02
#: A block of distances is 2 MB.
_PROBE_BLOCK, _GALLERY_BLOCK = 512, 1024
#: Elements of one block of direct differences (float64): 2 MB.
_PAIRED_BLOCK = 1 << 18


def check_metric(metric: str) -> str:
    """Gives the metric's name back, or raises `OptionError`."""
    if metric not in METRICS:
        raise OptionError("no such metric", where="metric", got=repr(metric), expected=" or ".join(METRICS))
    return metric


def check_features(features: ArrayLike, where: str, shape: tuple[int | None, ...] = (None, None, None)) -> Features:
    """Checks and converts feature maps.

    Args:
        features: floating-point array.
        where: the argument's name, for the message.
        shape: expected sizes; None = any (at least 1 for all but the first axis).

    Returns:
        A C-contiguous float32 array; the input itself where it is one already.

    Raises:
        InputError: wrong rank, size or dtype; NaN, infinite or larger in magnitude than 1e17.
    """
    array = np.asarray(features)
    expected = "float32 [" + ", ".join("n" if size is None else str(size) for size in shape) + "]"
    if array.dtype.kind != "f":
        raise InputError("not a floating-point array", where=where, got=_describe(array), expected=expected)
    fits = array.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape[-2:]:
        hint = "for a single map pass F[None]" if array.ndim == len(shape) - 1 else None
        raise InputError("wrong shape", where=where, got=_describe(array), expected=expected, fix=hint)
    # Compared before the conversion (float64 may overflow float32), and written so that NaN fails too.
    if array.size and not (array.min() >= -LARGEST_VALUE and array.max() <= LARGEST_VALUE):
        bad = int(array.size - np.count_nonzero(np.abs(array) <= LARGEST_VALUE))
        raise InputError(
            f"{bad} of {array.size} values are NaN, infinite or larger than {LARGEST_VALUE:g}",
            where=where,
            expected="finite values",
            fix="look at the network that made them: a half-precision overflow is the usual cause",
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def pairwise(probe: ArrayLike, gallery: ArrayLike, metric: str = "euclidean") -> Features:
    """Distance of every probe to every gallery map.

    By blocked matrix products per strip: beyond inputs and result it takes 20 MB and 8 bytes per strip. Values agree
    with `paired` to about 1e-5 of the distance; strips that nearly coincide are recomputed in float64.

    Args:
        probe: float32 `[n, s, d]`.
        gallery: float32 `[m, s, d]`.
        metric: "euclidean" or "cosine".

    Returns:
        float32 `[n, m]`; lower is nearer.

    Raises:
        InputError: wrong rank or shape, not floating-point, NaN or infinite.
        OptionError: unknown metric.
    """
    check_metric(metric)
    x = check_features(probe, "probe")
    y = check_features(gallery, "gallery", (None, x.shape[1], x.shape[2]))
    result = np.empty((len(x), len(y)), np.float32)
    xx, yy = squares(x), squares(y)
    block = _euclidean_block if metric == "euclidean" else _cosine_block
    for i in range(0, len(x), _PROBE_BLOCK):
        rows = slice(i, i + _PROBE_BLOCK)
        for j in range(0, len(y), _GALLERY_BLOCK):
            columns = slice(j, j + _GALLERY_BLOCK)
            # All strips of a block before the next one, so that their sum stays in the cache.
            total = np.zeros(result[rows, columns].shape, np.float32)
            for strip in range(x.shape[1]):
                total += block(x[rows, strip], y[columns, strip], xx[rows, strip], yy[columns, strip])
            np.divide(total, np.float32(x.shape[1]), out=result[rows, columns])
    return result


def paired(a: ArrayLike, b: ArrayLike, metric: str = "euclidean") -> Features:
    """Distance of `a[i]` to `b[i]`, by direct differences in float64: nothing cancels, and what is rounded to float32
    at the end depends on no block size, thread count or BLAS.

    A map to itself has distance exactly 0 (under "cosine" where no strip has a norm below 1e-12).

    Args:
        a, b: float32 `[n, s, d]`.
        metric: "euclidean" or "cosine".

    Returns:
        float32 `[n]`; lower is nearer.

    Raises:
        InputError: wrong rank or shape, not floating-point, NaN or infinite.
        OptionError: unknown metric.
    """
    check_metric(metric)
    x = check_features(a, "a")
    y = check_features(b, "b", x.shape)
    result = np.empty(len(x), np.float32)
    step = max(1, _PAIRED_BLOCK // (x.shape[1] * x.shape[2]))
    direct = _euclidean_direct if metric == "euclidean" else _cosine_direct
    for i in range(0, len(x), step):
        result[i : i + step] = direct(x[i : i + step].astype(np.float64), y[i : i + step].astype(np.float64))
    return result


def squares(x: Features) -> NDArray[np.float64]:
    """`||x||^2` over the last axis, summed in float64, a block at a time."""
    flat = x.reshape(-1, x.shape[-1])
    result = np.empty(len(flat), np.float64)
    step = max(1, _PAIRED_BLOCK // flat.shape[1])
    for i in range(0, len(flat), step):
        wide = flat[i : i + step].astype(np.float64)
        result[i : i + step] = np.einsum("nd,nd->n", wide, wide)
    return result.reshape(x.shape[:-1])


def _euclidean_block(x: Features, y: Features, xx: NDArray[np.float64], yy: NDArray[np.float64]) -> Features:
    # In place: passes over the block would else cost as much as the product.
    squared = (np.float32(-2.0) * x) @ y.T
    squared += yy.astype(np.float32)
    squared += xx.astype(np.float32)[:, None]
    # The bound by the largest squares is one pass; only where it fails is every pair looked at.
    doubtful = squared.min() < _CANCELLATION * (xx.max() + yy.max())
    if doubtful and np.any(squared < _CANCELLATION * (xx[:, None] + yy)):
        exact = xx[:, None] + yy - 2.0 * (x.astype(np.float64) @ y.T.astype(np.float64))
        squared = np.maximum(exact, 0.0).astype(np.float32)
    distances: Features = np.sqrt(squared, out=squared)
    return distances


def _cosine_block(x: Features, y: Features, xx: NDArray[np.float64], yy: NDArray[np.float64]) -> Features:
    x_unit = (x / np.maximum(np.sqrt(xx), SMALLEST_NORM)[:, None]).astype(np.float32)
    y_unit = (y / np.maximum(np.sqrt(yy), SMALLEST_NORM)[:, None]).astype(np.float32)
    distances: Features = np.maximum(np.float32(1.0) - x_unit @ y_unit.T, np.float32(0.0))
    return distances


def _euclidean_direct(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    difference = x - y
    distances: NDArray[np.float64] = np.sqrt(np.einsum("nsd,nsd->ns", difference, difference)).mean(-1)
    return distances


def _cosine_direct(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    x_unit, x_square = _unit(x)
    y_unit, y_square = _unit(y)
    difference = x_unit - y_unit
    # 1 - cos = |x - y|^2 / 2 for unit vectors: nothing cancels. A shorter one needs the rest of the identity.
    distances = 0.5 * np.einsum("nsd,nsd->ns", difference, difference)
    distances += np.where((x_square < 1.0) | (y_square < 1.0), 1.0 - 0.5 * (x_square + y_square), 0.0)
    mean: NDArray[np.float64] = distances.mean(-1)
    return mean


def _unit(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`x / max(||x||, 1e-12)` and its squared length."""
    norms = np.sqrt(np.einsum("nsd,nsd->ns", x, x))
    divisor = np.maximum(norms, SMALLEST_NORM)
    return x / divisor[..., None], np.square(norms / divisor)


def _describe(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {list(array.shape)}"
