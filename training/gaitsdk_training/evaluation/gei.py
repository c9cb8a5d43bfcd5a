"""The gait energy image (Han and Bhanu, 2006): the mean silhouette. The baseline that every network must beat."""

from __future__ import annotations

import numpy as np
from gaitsdk.silhouettes import cut_and_scale
from numpy.typing import ArrayLike, NDArray


def gei(silhouettes: ArrayLike) -> NDArray[np.float32]:
    """Mean of the frames, as a feature map of one strip, so that `evaluate` takes it like a network's.

    Args:
        silhouettes: normalised, uint8 [T, S, S], T >= 1.

    Returns:
        F [1, S * W] float32 in 0..1, W = S without the columns that are cut (64 -> 44).
    """
    frames: NDArray[np.float32] = cut_and_scale(np.asarray(silhouettes, np.uint8))
    return frames.mean(axis=0, dtype=np.float64).astype(np.float32).reshape(1, -1)
