"""MT3D (Lin, Zhang and Bao, ACM Multimedia 2020): 3-D convolutions at two temporal scales.

An unverified reconstruction: no public code or weights, no fixture. The abstract tells of a small temporal scale
(frames) and a large one (intervals of frames), each a 3-D network; of basic 3-D blocks (B3D); of a local transformation
(LT) that makes what the large scale sees; of a pooling over frames that admits sequences of any length. Everything else
was chosen, after the same authors' next network (GaitGL) where that can tell:

* Input: 64x44, as whoever reproduced its results says.
* B3D: 3x3x3, 1x3x3 and 3x1x1 convolutions in parallel, summed, leaky ReLU; no bias, no batch norm, as GaitGL's.
* LT: a 3x1x1 convolution with stride 3 in time, leaky ReLU: GaitGL's local temporal aggregation, which grew out of it.
  Frames that fill no interval are left out of both scales; fewer than three are repeated.
* Depth and widths: a 3x3x3 stem and two stages of one block each, 32, 64 and 128 wide (OU-MVLP: twice that, as networks
  of that time were); the first stage halves height and width. Intervals enter the large scale from the stem, and what
  LT makes of the small scale is added to it after both stages.
* Pooling over frames: the maximum, of both scales, as GaitGL's; only a maximum over pieces of a sequence is exact.
* Head: mean plus maximum of single rows, and one linear map per row of either scale. The strips of the small scale come
  first, those of the large one after them, which makes GaitGL's 64 strips for 64x44; widths of the features as there.
* Training: by triplets alone, so there is no classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.models.blocks import LEAKY_SLOPE, SeparateFCs, convolution3d, horizontal_pyramid_pooling, initialise
from gaitsdk.models.gaitgl import (
    INTERVAL,
    BasicConv3d,
    IntervalModel,
    local_aggregation,
    one_channel_last,
)
from gaitsdk.models.options import ModelOptions
from gaitsdk.models.packing import Packing, blanked
from gaitsdk.models.registry import register_model


@dataclass(frozen=True, kw_only=True)
class MT3DOptions(ModelOptions):
    """Defaults: the reconstruction for CASIA-B; the one for OU-MVLP is twice as wide.

    Attributes:
        channels: widths of the stem and of the two stages; the first stage halves height and width.
        dims: d of the feature map.
        strips: of each temporal scale, s = 2 * strips; divides half the height of the input.
    """

    channels: tuple[int, int, int] = (32, 64, 128)
    dims: int = 128
    strips: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ints("channels", count=3)
        self.check_int("dims")
        self.check_int("strips")
        self.check_bins((self.strips,), self.size[0] // 2, "strips, or size (the last maps have half of its height)")


class B3D(nn.Module):
    """Basic 3-D block: 3x3x3, 1x3x3 and 3x1x1 convolutions in parallel, summed, leaky ReLU.

    State: `joint.conv3d.weight spatial.conv3d.weight temporal.conv3d.weight`.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.joint = BasicConv3d(c_in, c_out)
        self.spatial = BasicConv3d(c_in, c_out, (1, 3, 3), padding=(0, 1, 1))
        self.temporal = BasicConv3d(c_in, c_out, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T, h, w]."""
        # The sum of convolutions is the convolution with the sum of their kernels: 27 products instead of 39.
        spatial = F.pad(self.spatial.conv3d.weight, (0, 0, 0, 0, 1, 1))
        temporal = F.pad(self.temporal.conv3d.weight, (1, 1, 1, 1))
        return F.leaky_relu_(convolution3d(x, self.joint.conv3d.weight + spatial + temporal), LEAKY_SLOPE)


@register_model("mt3d")
class MT3D(IntervalModel):
    """Unverified reconstruction: no public code or weights, no fixture. The module says what was chosen, and why.

    A network of frames beside a network of intervals of three frames; local transformations of the first's maps are
    added to the second's. It has neither batch norm nor classifier: it is trained by triplets alone.
    """

    Options: ClassVar[type[ModelOptions]] = MT3DOptions
    verified: ClassVar[bool] = False
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"channels": (4, 6, 8), "dims": 10, "strips": 8},
        "casiab": {},
        "oumvlp": {"channels": (64, 128, 256), "dims": 256},
    }

    def __init__(self, options: MT3DOptions) -> None:
        super().__init__(options, strips=2 * options.strips, dims=options.dims)
        c0, c1, c2 = options.channels
        # One frame for the stem, one interval for each of the two blocks of the large scale, which sees furthest.
        self.halo = 1 + 2 * INTERVAL
        self.stem = BasicConv3d(1, c0)
        self.small1, self.small2 = B3D(c0, c1), B3D(c1, c2)
        self.large1, self.large2 = B3D(c0, c1), B3D(c1, c2)
        self.LT0, self.LT1, self.LT2 = (local_aggregation(channels) for channels in options.channels)
        self.Head = SeparateFCs(self.strips, c2, options.dims)
        initialise(self)

    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, 1, T, H, W] -> [B, channels[2], T // 3, 2 * (H // 2), W // 2], the small scale above the large one."""
        intervals = None if packing is None else packing.divided(self.stride)
        small = F.leaky_relu_(self.stem(blanked(one_channel_last(x), packing)), LEAKY_SLOPE)
        # Each sequence starts with an interval, so no interval sees two sequences.
        large = self.LT0(small)
        small = F.max_pool3d(self.small1(blanked(small, packing)), (1, 2, 2))
        large = F.max_pool3d(self.large1(blanked(large, intervals)), (1, 2, 2)) + self.LT1(small)
        small = self.small2(blanked(small, packing))
        large = self.large2(blanked(large, intervals)) + self.LT2(small)
        return torch.cat([F.max_pool3d(small, (INTERVAL, 1, 1)), large], dim=3)

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, channels[2], 2 * (H // 2), W // 2] -> [B, s, d]."""
        features: Tensor = self.Head(horizontal_pyramid_pooling(pooled, (self.strips,)))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but size."""
        stages = ["stem.conv3d.weight", "small1.joint.conv3d.weight", "small2.joint.conv3d.weight"]
        required = {*stages, "large2.joint.conv3d.weight", "LT0.0.conv3d.weight", "Head.fc_bin"}
        if not required <= shapes.keys() or len(shapes["Head.fc_bin"]) != 3:
            return None
        strips, _, dims = shapes["Head.fc_bin"]
        return {"channels": tuple(shapes[key][0] for key in stages), "dims": dims, "strips": strips // 2}
