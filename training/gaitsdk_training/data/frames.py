"""From whole sequences to a batch of a fixed number of frames, and from uint8 to what a backbone takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaitsdk.errors import OptionError
from gaitsdk_training.data.dataset import SequenceDataset, Silhouettes

#: How frames of a training sequence are chosen where all sequences of a batch give equally many ...
SAMPLING = ("fixed_unordered", "fixed_ordered")
#: ... or each another number of them ...
UNFIXED_SAMPLING = ("unfixed_unordered", "unfixed_ordered")
#: ... or all that they have, from the first on: for inference.
ALL_FRAMES = "all_ordered"
#: Extra frames of the window from which ordered sampling drops at random (uneven frame rates), unless told otherwise.
SKIP = 4


def frame_indices(
    rng: np.random.Generator, length: int, count: int | tuple[int, int], sampling: str, skip: int = SKIP
) -> NDArray[np.int64]:
    """Which frames of a sequence enter the batch.

    "fixed_unordered": `count` frames at random, without replacement where there are enough, in random order (for
    backbones that see a set of frames). "fixed_ordered": a random window of `count + skip` frames in order, from which
    `skip` are dropped at random; a sequence that is too short is repeated from its start first. "unfixed_unordered"
    and "unfixed_ordered": the same with a number of frames that is drawn for each sequence, uniformly from `count`'s
    least to its most. "all_ordered": every frame in order, the first `count` of longer sequences.

    Args:
        rng: NumPy generator.
        length: frames of the sequence, >= 1.
        count: frames to choose, >= 1; (least, most) where the sampling is unfixed.
        sampling: one of `SAMPLING`, `UNFIXED_SAMPLING`, `ALL_FRAMES`.
        skip: frames that ordered sampling leaves out of its window; 0 takes frames in a row.

    Returns:
        int64 [count] (fewer where all frames are fewer), each in 0..length-1.

    Raises:
        OptionError: unknown sampling, or a count that does not go with it.
    """
    if sampling == ALL_FRAMES:
        return np.arange(min(length, _one(count, sampling)), dtype=np.int64)
    if sampling in UNFIXED_SAMPLING:
        least, most = _range(count, sampling)
        number = int(rng.integers(least, most + 1))
    elif sampling in SAMPLING:
        number = _one(count, sampling)
    else:
        known = ", ".join((*SAMPLING, *UNFIXED_SAMPLING, ALL_FRAMES))
        raise OptionError("unknown frame sampling", where="sampling", got=repr(sampling), expected=known)
    if sampling.endswith("unordered"):
        return rng.choice(length, number, replace=length < number).astype(np.int64)
    window = number + skip
    total = length * -(-window // length)
    start = int(rng.integers(0, total - window + 1))
    kept = np.sort(rng.choice(window, number, replace=False))
    return (start + kept).astype(np.int64) % length


def batch_sampling(rng: np.random.Generator, count: int | tuple[int, int], sampling: str) -> tuple[int, str]:
    """What to load a batch of one T with: unfixed sampling draws T from (least, most), and is fixed from then on.

    For training, where the published collation draws a T for each sequence: a network that looks across time has to be
    given sequences of one length; over many batches the lengths are as often.
    """
    if sampling not in UNFIXED_SAMPLING:
        return _one(count, sampling), sampling
    least, most = _range(count, sampling)
    return int(rng.integers(least, most + 1)), sampling.replace("unfixed", "fixed")


def load_batch(
    dataset: SequenceDataset,
    indices: Iterable[int],
    count: int,
    sampling: str,
    rng: np.random.Generator,
    share: tuple[int, int] = (0, 1),
    skip: int = SKIP,
) -> Silhouettes:
    """`count` frames of each sequence at `indices`, for one of the samplings of `SAMPLING`.

    Args:
        share: (rank, world) where several processes share the batch: every world-th sequence is read, from rank on, and
            the frames are those that a single process would have chosen.
        skip: as for `frame_indices`.

    Returns:
        uint8 [B, count, S, S], or [B, count, C, S, S] of C > 1 maps.
    """
    if sampling in (*UNFIXED_SAMPLING, ALL_FRAMES):
        raise OptionError(
            "the sequences of this sampling are no batch of one length",
            where="sampling",
            got=repr(sampling),
            expected=" or ".join(SAMPLING),
            fix="use load_sequences",
        )
    picks = _picks(dataset, indices, count, sampling, rng, share, skip)
    batch = np.empty((len(picks), count, *dataset[0].shape[1:]), np.uint8)
    for out, (index, frames) in zip(batch, picks, strict=True):
        # Straight into the batch; without "clip" NumPy would go through a copy. The indices are in range.
        np.take(dataset[index], frames, axis=0, out=out, mode="clip")
    return batch


def load_sequences(
    dataset: SequenceDataset,
    indices: Iterable[int],
    count: int | tuple[int, int],
    sampling: str,
    rng: np.random.Generator,
    share: tuple[int, int] = (0, 1),
    skip: int = SKIP,
) -> list[Silhouettes]:
    """As `load_batch`, for any sampling: uint8 [T_i, S, S] or [T_i, C, S, S] each, as `GaitModel.forward_sequences`
    takes them after `to_input`."""
    picks = _picks(dataset, indices, count, sampling, rng, share, skip)
    return [dataset[index][frames] for index, frames in picks]


def _picks(
    dataset: SequenceDataset,
    indices: Iterable[int],
    count: int | tuple[int, int],
    sampling: str,
    rng: np.random.Generator,
    share: tuple[int, int],
    skip: int,
) -> list[tuple[int, NDArray[np.int64]]]:
    """Sequences with their frames. The frames of others' sequences are drawn, too, so that nothing depends on them."""
    rank, world = share
    if not 0 <= rank < world:
        raise OptionError("no such share of a batch", where="share", got=share, expected="(rank, world), rank < world")
    chosen = [int(each) for each in indices]
    drawn = [(each, frame_indices(rng, len(dataset[each]), count, sampling, skip)) for each in chosen]
    dataset.expect(index for index, _ in drawn[rank::world])
    return drawn[rank::world]


def _one(count: int | tuple[int, int], sampling: str) -> int:
    if isinstance(count, int) and count >= 1:
        return count
    raise OptionError(
        "impossible number of frames", where=f"count of {sampling}", got=repr(count), expected="an integer >= 1"
    )


def _range(count: int | tuple[int, int], sampling: str) -> tuple[int, int]:
    if isinstance(count, tuple) and len(count) == 2 and 1 <= count[0] <= count[1]:
        return count
    raise OptionError(
        "impossible numbers of frames",
        where=f"count of {sampling}",
        got=repr(count),
        expected="(least, most), 1 <= least <= most",
    )


def to_input(silhouettes: Silhouettes | Tensor, input_size: tuple[int, int]) -> Tensor:
    """Normalised silhouettes as a backbone takes them: the columns cut to its width, scaled to 0..1; other maps, too.

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
