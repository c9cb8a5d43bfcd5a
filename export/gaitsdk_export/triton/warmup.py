"""What a server asks its networks before it counts as ready, so that nobody's first request is slow.

Only networks are warmed up: their first call loads kernels, allocates, and on a GPU records graphs. `shortlist`, which
refuses an empty gallery, warms its own up when it opens. `gallery` needs none, and asks `embed`, which may not be there
yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gaitsdk_export.triton.config import CudaGraph, ModelConfig, Sample, Warmup

#: Frames of the walk that warms up a Python model.
FRAMES = 30
#: Its file in the model's folder `warmup`: Triton reads raw bytes of one item from there.
WALK = f"walk-{FRAMES}"


def walk(size: int, channels: int) -> NDArray[np.uint8]:
    """A drawn walk `[FRAMES, S, S]` (`[FRAMES, C, S, S]`) that passes for silhouettes. In whole numbers only: the same
    bytes on every machine.

    Args:
        size, channels: S and C of the model.
    """
    frames = np.zeros((FRAMES, size, size), np.uint8)
    middle, half, hip = size // 2, size // 8, size // 2
    frames[:, :hip, middle - half : middle + half] = 255
    for number, frame in enumerate(frames):
        stride = abs(number % 16 - 8) * size // 64  # legs apart, together, apart
        for row in range(hip, size):
            shift = stride * (row - hip) // (size - hip)
            for foot in (middle - shift, middle + shift):
                frame[row, foot - half // 2 : foot + half // 2 + 1] = 255
    return frames if channels == 1 else np.stack([frames] * channels, axis=1)


def requests(model: ModelConfig, batches: Sequence[int], sizes: Sequence[int], data: str = "zero") -> list[Warmup]:
    """A request for every batch and every size of the model's free axes.

    Args:
        data: "zero", or the file that holds an item.
    """
    return [
        Warmup(
            name=f"{batch}x{size}",
            inputs={
                each.name: Sample(each.data_type, _filled(each.dims, size), data)
                for each in model.inputs
                if not each.optional
            },
            batch_size=batch,
        )
        for size in sizes
        for batch in sorted(set(batches))
    ]


def graphs(model: ModelConfig, batches: Sequence[int], sizes: Sequence[int]) -> list[CudaGraph]:
    """The sizes for which TensorRT's launches are recorded. None covers smaller ones, too, as Triton could let it: what
    lies in the unused part of an input would change the answer."""
    return [
        CudaGraph(batch, {each.name: _filled(each.dims, size) for each in model.inputs})
        for size in sizes
        for batch in sorted(set(batches))
    ]


def _filled(dims: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(size if each == -1 else each for each in dims)
