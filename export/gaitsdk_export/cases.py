"""Inputs for the parity check: different items in every batch, several lengths, and the degenerate sequences."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gaitsdk import synthetic
from gaitsdk_export.parity import BATCHES, LENGTHS, LIST_LENGTHS, Case

#: Frames in one case; larger combinations of batch and length are left out.
MOST_FRAMES = 150


def embedder_cases(
    size: int, channels: int = 1, batches: Sequence[int] = BATCHES, lengths: Sequence[int] = LENGTHS
) -> Iterator[Case]:
    """Batches of different walkers at every length, then all-zero, all-one and mixed batches.

    Args:
        size: S.
        channels: C; 1 gives `[B, T, S, S]`, more `[B, T, C, S, S]`.
    """
    longest = max(31, *lengths)
    # The first walker of a batch moves on, so that the same place in two batches is not the same person.
    first = 0
    for length in lengths:
        for batch in batches:
            if batch * length > MOST_FRAMES and length != min(lengths):
                continue  # the largest batch at the shortest length shows what it can; the rest is minutes of CPU
            people = [(first + i) % max(batches) for i in range(batch)]
            walks = [_walker(person, longest, size, channels)[:length] for person in people]
            yield Case(f"walkers batch {batch}, {length} frames", (np.stack(walks),))
            first += 1
    one = _walker(0, longest, size, channels)[:31]  # 31: one more than a multiple of 3 and of 5
    zero, full = np.zeros_like(one), np.full_like(one, 255)
    noise = np.random.default_rng(7).integers(0, 256, one.shape, np.uint8)
    yield Case("all zero", (zero[None],))
    yield Case("all one", (full[None],))
    yield Case("zero, one, walker and noise in one batch", (np.stack([zero, full, one, noise]),))


@functools.lru_cache(maxsize=64)  # drawing costs more than a small network
def _walker(person: int, frames: int, size: int, channels: int) -> NDArray[np.uint8]:
    """A drawn walker `[T, (C,) S, S]`."""
    walk = as_input(
        synthetic.sequence(person, view=("090", "036", "144")[person % 3], frames=frames, seed=person), size, channels
    )
    walk.setflags(write=False)  # everybody gets the same array
    return walk


def as_input(walk: NDArray[np.uint8], size: int, channels: int = 1) -> NDArray[np.uint8]:
    """A drawn walk `[T, 64, 64]` as a network's input `[T, (C,) S, S]`; further maps are other phases of it."""
    factor = size // walk.shape[-1]
    if factor > 1:
        walk = walk.repeat(factor, axis=1).repeat(factor, axis=2)
    if channels > 1:
        walk = np.stack([np.roll(walk, 3 * channel, axis=0) for channel in range(channels)], axis=1)
    return walk


def reranker_cases(
    strips: int, dims: int, batches: Sequence[int] = BATCHES, list_lengths: Sequence[int] = LIST_LENGTHS
) -> Iterator[Case]:
    """Lists of candidates from near to far, then the probe itself, ties, all-zero and all-one features."""
    random = np.random.default_rng(11)
    for k in list_lengths:
        for batch in batches:
            probe = random.standard_normal((batch, strips, dims)).astype(np.float32)
            far = random.standard_normal((batch, k, strips, dims)).astype(np.float32)
            nearness = random.uniform(0, 1, (batch, k, 1, 1)).astype(np.float32)
            yield Case(f"lists batch {batch}, K {k}", (probe, nearness * probe[:, None] + (1 - nearness) * far))
    probe = random.standard_normal((2, strips, dims)).astype(np.float32)
    other = random.standard_normal((2, strips, dims)).astype(np.float32)
    yield Case("ties", (probe, np.stack([other, probe, other, probe, other], axis=1)))
    yield Case("all zero", (np.zeros_like(probe), np.zeros((2, 5, strips, dims), np.float32)))
    yield Case("all one", (np.ones_like(probe), np.stack([other, np.ones_like(other)], axis=1)))
