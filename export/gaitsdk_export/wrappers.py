"""The two graphs that get exported, as torch modules: what goes in, what comes out, which axes are free.

Shapes: B batch, T frames, S pixels, C maps per frame, K candidates, s strips, d dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gaitsdk.errors import ExportError


class ExportWrapper(nn.Module):
    """A network together with its graph contract.

    Attributes:
        role: "backbone" or "reranker".
        task: "embed" or "rerank".
        input_names, output_names: of the graph.
        dynamic_axes: per input, axis -> name of the free dimension.
        least: the smallest size of a free dimension that the graph serves, where that is not 1.
        output_shapes: per output, the shape with the names of free dimensions.
        sizes: figures that whoever loads the graph needs to know.
    """

    role: str
    task: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_axes: dict[str, dict[int, str]]
    least: dict[str, int]
    output_shapes: dict[str, tuple[str | int, ...]]
    sizes: dict[str, int]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs for tracing. A batch of 2 *different* items: with one item torch bakes the batch into the graph."""
        raise ExportError("this wrapper has no example input", where=type(self).__name__)


def _require_eval(network: nn.Module) -> None:
    if any(part.training for part in network.modules()):
        raise ExportError(
            "the network is in training mode: batch statistics and dropout would end up in the graph",
            where=type(network).__name__,
            fix="call .eval() on it first",
        )


class EmbedderForExport(ExportWrapper):
    """`silhouettes` uint8 `[B, T, S, S]` (`[B, T, C, S, S]` where C > 1) -> `features` float32 `[B, s, d]`.

    Args:
        model: a `gaitsdk.models` backbone in eval mode; reads `[B, T, (C,) H, W]` float32 in 0..1.
        size: S, height and width of a normalised silhouette; `(S // 64) * 10` columns are cut from each side.
        channels: C.

    Raises:
        ExportError: the model is in training mode, or `size` does not fit its input.
    """

    role, task = "backbone", "embed"
    input_names, output_names = ("silhouettes",), ("features",)

    def __init__(self, model: Any, size: int, channels: int = 1) -> None:
        super().__init__()
        _require_eval(model)
        self.cut = (size // 64) * 10
        expected = (size, size - 2 * self.cut)
        if tuple(model.input_size) != expected:
            raise ExportError(
                "the model reads another size",
                where="size",
                got=f"{size}, which gives frames of {expected}",
                expected=f"frames of {tuple(model.input_size)}",
            )
        self.model = model
        self.size, self.channels = size, channels
        self.dynamic_axes = {"silhouettes": {0: "batch", 1: "frames"}}
        least = getattr(model, "least_frames", 1)
        self.least = {"frames": least}
        self.output_shapes = {"features": ("batch", model.strips, model.dims)}
        self.sizes = {"size": size, "channels": channels, "strips": model.strips, "dims": model.dims}
        self.sizes["least_frames"] = least
        self.eval()

    def forward(self, silhouettes: Tensor) -> Tensor:
        # Cast first, then cut: TensorRT cannot slice uint8.
        frames = silhouettes.float()[..., self.cut : self.size - self.cut] / 255.0
        features: Tensor = self.model(frames)
        return features

    def example(self) -> tuple[Tensor, ...]:
        # 14 frames: no multiple of 3 (temporal strides) nor of 8 (windows), so that no rounding goes unnoticed.
        frame = (self.size, self.size) if self.channels == 1 else (self.channels, self.size, self.size)
        generator = torch.Generator().manual_seed(1)
        return (torch.randint(0, 256, (2, 14, *frame), dtype=torch.uint8, generator=generator),)


class RerankerForExport(ExportWrapper):
    """`probe` `[B, s, d]`, `candidates` `[B, K, s, d]` float32 -> `distances` `[B, K]` float32, `order` `[B, K]` int64.

    `order` lists candidates from the nearest to the farthest; equal distances keep the order of the list.

    Args:
        reranker: a `CarGait` or `PairClassifier` (anything with their forward) in eval mode.
        strips, dims: s and d of the feature maps it compares.

    Raises:
        ExportError: the re-ranker is in training mode.
    """

    role, task = "reranker", "rerank"
    input_names, output_names = ("probe", "candidates"), ("distances", "order")

    def __init__(self, reranker: Any, strips: int, dims: int) -> None:
        super().__init__()
        _require_eval(reranker)
        self.reranker = reranker
        self.strips, self.dims = strips, dims
        self.dynamic_axes = {"probe": {0: "batch"}, "candidates": {0: "batch", 1: "candidates"}}
        self.least = {}
        self.output_shapes = {"distances": ("batch", "candidates"), "order": ("batch", "candidates")}
        self.sizes = {"strips": strips, "dims": dims}
        self.eval()

    def forward(self, probe: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        distances: Tensor = self.reranker(probe, candidates)
        return distances, stable_order(distances)

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        probe = torch.randn(2, self.strips, self.dims, generator=generator)
        return probe, torch.randn(2, 5, self.strips, self.dims, generator=generator)


def stable_order(distances: Tensor) -> Tensor:
    """Positions from the smallest to the largest distance, ties in list order: `[B, K]` float -> `[B, K]` int64.

    By counting: a candidate's rank is the number of candidates that are nearer, or as near and earlier in the list.
    K x K comparisons are nothing at K = 10, and unlike a sort they leave no runtime any freedom: torch's ONNX exporter
    (2.13) has no stable sort, and while ONNX defines that TopK breaks ties by position, not every compiler promises it.
    """
    position = torch.arange(distances.shape[1], device=distances.device)
    mine, other = distances.unsqueeze(2), distances.unsqueeze(1)
    earlier = (position.unsqueeze(0) < position.unsqueeze(1)).unsqueeze(0)  # [1, mine, other]
    rank = ((other < mine) | ((other == mine) & earlier)).to(torch.int64).sum(2)  # [B, K]
    at_rank = rank.unsqueeze(1) == position.view(1, -1, 1)  # [B, rank, candidate]
    return (at_rank.to(torch.int64) * position).sum(2)
