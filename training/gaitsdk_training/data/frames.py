"""From whole sequences to a batch of a fixed number of frames, and from uint8 to what a backbone takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaitsdk.errors import OptionError
from gaitsdk_training.data.dataset import SequenceDataset, Silhouettes

#: How frames of a training sequence are chosen.
SAMPLING = ("fixed_unordered", "fixed_ordered")
#: Extra frames of the window from which `fixed_ordered` drops at random (uneven frame rates).
SKIP = 4


def frame_indices(rng: np.random.Generator, length: int, count: int, sampling: str) -> NDArray[np.int64]:
    """Which frames of a sequence enter the batch.

    "fixed_unordered": `count` frames at random, without replacement where there are enough, in random order (for
    backbones that see a set of frames). "fixed_ordered": a random window of `count + 4` frames in order, from which 4
    are dropped at random; a sequence that is too short is repeated from its start first.

    Args:
        rng: NumPy generator.
        length: frames of the sequence, >= 1.
        count: frames to choose, >= 1.
        sampling: one of `SAMPLING`.

    Returns:
        int64 [count], each in 0..length-1.

    Raises:
        OptionError: unknown sampling.
    """
    if sampling == "fixed_unordered":
        return rng.choice(length, count, replace=length < count).astype(np.int64)
    if sampling == "fixed_ordered":
        window = count + SKIP
        total = length * -(-window // length)
        start = int(rng.integers(0, total - window + 1))
        kept = np.sort(rng.choice(window, count, replace=False))
        return (start + kept).astype(np.int64) % length
    raise OptionError("unknown frame sampling", where="sampling", got=repr(sampling), expected=" or ".join(SAMPLING))


def load_batch(
    dataset: SequenceDataset, indices: Iterable[int], count: int, sampling: str, rng: np.random.Generator
) -> Silhouettes:
    """`count` frames of each sequence at `indices`: uint8 [B, count, S, S]."""
    chosen = (dataset[int(i)] for i in indices)
    return np.stack([each[frame_indices(rng, len(each), count, sampling)] for each in chosen])


def to_input(silhouettes: Silhouettes | Tensor, input_size: tuple[int, int]) -> Tensor:
    """Normalised silhouettes as a backbone takes them: the columns cut to its width, scaled to 0..1.

    Args:
        silhouettes: uint8 [..., S, S]; a tensor stays on its device.
        input_size: (H, W) of the backbone, H = S.

    Returns:
        float32 [..., H, W].

    Raises:
        OptionError: frames of S do not give the backbone's input.
    """
    # A copy where the array is read-only (memory-mapped): torch cannot mark a tensor so, and would warn.
    frames = (
        silhouettes
        if isinstance(silhouettes, Tensor)
        else torch.from_numpy(np.require(silhouettes, requirements=["C", "W"]))
    )
    size = frames.shape[-1]
    cut = size // 64 * 10
    if input_size != (frames.shape[-2], size - 2 * cut):
        raise OptionError(
            "the silhouettes do not fit the backbone",
            where="to_input",
            got=f"frames of {tuple(frames.shape[-2:])}, which are cut to {(frames.shape[-2], size - 2 * cut)}",
            expected=str(input_size),
            fix=f"normalise to {input_size[0]} pixels, or create the backbone with another size",
        )
    return frames[..., cut : size - cut].float().div_(255.0)
