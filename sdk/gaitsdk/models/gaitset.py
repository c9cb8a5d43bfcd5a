"""GaitSet (Chao et al., AAAI 2019): gait as a set of silhouettes, with a multilayer global pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gaitsdk.models.base import FrameSetModel
from gaitsdk.models.blocks import (
    LEAKY_SLOPE,
    BasicConv2d,
    FrameBlock,
    SeparateFCs,
    horizontal_pyramid_pooling,
    initialise,
)
from gaitsdk.models.options import ModelOptions, halving_pyramid
from gaitsdk.models.registry import register_model


@dataclass(frozen=True, kw_only=True)
class GaitSetOptions(ModelOptions):
    """Defaults: the published CASIA-B network; OU-MVLP and GREW use channels (64, 128, 256).

    Attributes:
        channels: widths of the three stages.
        dims: d of the feature map.
        bins: strips of each level of the pyramid; s = 2 * sum(bins) (frame line, then global line).
    """

    channels: tuple[int, int, int] = (32, 64, 128)
    dims: int = 256
    bins: tuple[int, ...] = (16, 8, 4, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ints("channels", count=3)
        self.check_int("dims")
        self.check_ints("bins")
        self.check_bins(self.bins, self.size[0] // 2 // 2, "bins, or size (the map has a quarter of its height)")


def _stage(c_in: int, c_out: int, *, kernel: int = 3, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        BasicConv2d(c_in, c_out, kernel, padding=kernel // 2),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        BasicConv2d(c_out, c_out, 3, padding=1),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


@register_model("gaitset")
class GaitSet(FrameSetModel):
    """Three 2-D stages per frame; a global line sums in the set maxima after each; pyramid pooling on both lines.

    It has neither batch norm nor classifier: `forward_train` gives no logits (it is trained by triplets alone).
    """

    Options: ClassVar[type[ModelOptions]] = GaitSetOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "casiab": {},
        "gait3d": {},
        "oumvlp": {"channels": (64, 128, 256)},
        "grew": {"channels": (64, 128, 256)},
        "tiny": {"channels": (4, 6, 8), "dims": 12},
    }

    def __init__(self, options: GaitSetOptions) -> None:
        super().__init__(options, strips=2 * sum(options.bins), dims=options.dims)
        c1, c2, c3 = options.channels
        self.bins = options.bins
        self.set_block1 = FrameBlock(_stage(1, c1, kernel=5, pool=True))
        self.set_block2 = FrameBlock(_stage(c1, c2, pool=True))
        self.set_block3 = FrameBlock(_stage(c2, c3, pool=False))
        self.gl_block2 = _stage(c1, c2, pool=True)
        self.gl_block3 = _stage(c2, c3, pool=False)
        self.Head = SeparateFCs(self.strips, c3, options.dims)
        initialise(self)

    def frame_maps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """[N, 1, H, W] -> maps of the three stages, [N, c1, H/2, W/2], [N, c2, H/4, W/4], [N, c3, H/4, W/4]."""
        first = self.set_block1(frames)
        second = self.set_block2(first)
        third = self.set_block3(second)
        return first, second, third

    def set_features(self, pooled: tuple[Tensor, ...]) -> Tensor:
        """Set maxima of the three stages -> [B, s, d]."""
        first, second, third = pooled
        line = self.gl_block2(first) + second
        line = self.gl_block3(line) + third
        strips = [horizontal_pyramid_pooling(maps, self.bins) for maps in (third, line)]
        features: Tensor = self.Head(torch.cat(strips, dim=1))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Widths from the first convolution of each stage, d and s from the head."""
        stages = [f"set_block{i}.forward_block.0.conv.weight" for i in (1, 2, 3)]
        if not {*stages, "gl_block2.0.conv.weight", "Head.fc_bin"} <= shapes.keys() or len(shapes["Head.fc_bin"]) != 3:
            return None
        strips, _, dims = shapes["Head.fc_bin"]
        options: dict[str, Any] = {"channels": tuple(shapes[key][0] for key in stages), "dims": dims}
        bins = halving_pyramid(strips // 2)
        return options if bins is None else {**options, "bins": bins}
