"""The gait energy image (Han and Bhanu, 2006): the mean silhouette. The baseline that every network must beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import SilhouetteShapeError
from gaitsdk.silhouettes import cut_and_scale


def gei(silhouettes: ArrayLike) -> NDArray[np.float32]:
    """Mean of the frames, as a feature map of one strip, so that `evaluate` takes it like a network's.

    Args:
        silhouettes: normalised, uint8 [T, S, S], T >= 1.

    Returns:
        F [1, S * W] float32 in 0..1, W = S without the columns that are cut (64 -> 44).

    Raises:
        SilhouetteShapeError, SilhouetteValueError: no sequence, or not uint8.
    """
    frames = cut_and_scale(np.asarray(silhouettes))
    if frames.ndim != 3 or not len(frames):
        raise SilhouetteShapeError(
            "not a sequence", where="gei", got=list(np.shape(silhouettes)), expected="uint8 [T, S, S], T >= 1"
        )
    energy: NDArray[np.float32] = frames.mean(axis=0, dtype=np.float64).astype(np.float32)
    return energy.reshape(1, -1)
