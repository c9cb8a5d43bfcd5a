"""GaitPart (Fan et al., CVPR 2020): convolutions within horizontal strips, then micro-motions of each strip."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.models.blocks import (
    LEAKY_SLOPE,
    BasicConv2d,
    FrameBlock,
    SeparateFCs,
    horizontal_pyramid_pooling,
    initialise,
    per_frame,
)
from gaitsdk.models.options import ModelOptions
from gaitsdk.models.packing import Packing, blanked
from gaitsdk.models.registry import register_model
from gaitsdk.models.temporal import TemporalModel

#: Stages 1 and 2 end with a max pool that halves height and width.
_POOLS = 2


@dataclass(frozen=True, kw_only=True)
class GaitPartOptions(ModelOptions):
    """Defaults: the published CASIA-B network, also used for Gait3D's parsing maps.

    Attributes:
        channels: width of each stage of two convolutions; stages 1 and 2 halve height and width.
        focal_strips: per stage, into how many horizontal strips the maps are cut so that no convolution looks across
            their borders (2^h of the paper's halving h); 1 = ordinary convolutions.
        squeeze: the temporal gates are computed from channels[-1] / squeeze channels.
        dims: d of the feature map.
        strips: s of the feature map; divides the height of the last map.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    focal_strips: tuple[int, ...] = (1, 4, 8)
    squeeze: int = 4
    dims: int = 128
    strips: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ints("channels")
        self.check_ints("focal_strips", count=len(self.channels))
        for name in ("squeeze", "dims", "strips"):
            self.check_int(name)
        if self.channels[-1] % self.squeeze:
            raise self._refusal("squeeze", f"a divisor of the last stage's {self.channels[-1]} channels")
        for stage, count in enumerate(self.focal_strips):
            self.check_bins((count,), self.map_height(stage), f"focal_strips (stage {stage + 1}), or size")
        self.check_bins((self.strips,), self.map_height(len(self.channels)), "strips, or size")

    def map_height(self, stage: int) -> int:
        """Rows of the maps that stage `stage` (from 0) is given; the number of stages = rows of the last maps."""
        return self.size[0] >> min(stage, _POOLS)


class FocalConv2d(BasicConv2d):
    """3x3 or larger without bias, each horizontal strip padded with zeros for itself. State: `conv.weight`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, strips: int) -> None:
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.strips = strips

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, h, w] -> [N, c_out, h, w]; `strips` divides h."""
        if self.strips == 1:
            return super().forward(x)
        # Strips join the batch, and leave it again, as views: maps have their channels last.
        channels, height, width = x.shape[1:]
        rows = height // self.strips
        strips = x.reshape(-1, channels, self.strips, rows, width).transpose(1, 2).flatten(0, 1)
        maps = super().forward(strips).reshape(-1, self.strips, self.conv.out_channels, rows, width)
        return maps.transpose(1, 2).flatten(2, 3)


class Strips(nn.Module):
    """Mean + max of each horizontal strip of a frame's maps."""

    def __init__(self, strips: int) -> None:
        super().__init__()
        self.strips = strips

    def forward(self, frames: Tensor) -> Tensor:
        """[N, c, h, w] -> [N, s, c]."""
        return horizontal_pyramid_pooling(frames, (self.strips,))


class BasicConv1d(nn.Module):
    """The weight of a 1-D convolution without bias. State: `conv.weight`."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, bias=False)


class MicroMotionBranch(nn.ModuleList):
    """Short windows of frames, each weighed by a gate: sigmoid(two convolutions) * (mean + max of the window).

    Every strip has its own convolutions; all strips are computed together, as groups of one convolution.
    State: `<strip>.0.conv.weight`, `<strip>.2.conv.weight`.

    Args:
        strips, channels: s and c.
        squeezed: channels between the two convolutions of a strip; the first has 3 taps.
        taps: of the second convolution, odd.
        window: frames that are pooled, odd. Outside the sequence, means count zeros, and maxima nothing.
    """

    def __init__(self, strips: int, channels: int, squeezed: int, *, taps: int, window: int) -> None:
        super().__init__(
            nn.Sequential(BasicConv1d(channels, squeezed, 3), nn.Identity(), BasicConv1d(squeezed, channels, taps))
            for _ in range(strips)
        )
        self.taps, self.window = taps, window
        self.radius = max(1 + taps // 2, window // 2)

    def forward(self, x: Tensor, peaks: Tensor, packing: Packing | None) -> Tensor:
        """x, and the same with -inf in blank frames, [B, s * c, T] -> [B, s * c, T]."""
        y = F.leaky_relu_(F.conv1d(x, self._weights(0), padding=1, groups=len(self)), LEAKY_SLOPE)
        y = F.conv1d(blanked(y, packing), self._weights(2), padding=self.taps // 2, groups=len(self))
        reach = self.window // 2
        # In 2-D: torch's exporter freezes T in max_pool1d.
        highest = F.max_pool2d(peaks.unsqueeze(2), (1, self.window), 1, (0, reach)).squeeze(2)
        return torch.sigmoid(y) * (F.avg_pool1d(x, self.window, 1, reach) + highest)

    def _weights(self, layer: int) -> Tensor:
        return torch.cat([strip.get_parameter(f"{layer}.conv.weight") for strip in self])


class MicroMotions(nn.Module):
    """The sum of a branch over 3 frames and one over 5. State: `conv1d3x1.*`, `conv1d3x3.*`."""

    def __init__(self, strips: int, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1d3x1 = MicroMotionBranch(strips, channels, squeezed, taps=1, window=3)
        self.conv1d3x3 = MicroMotionBranch(strips, channels, squeezed, taps=3, window=5)
        self.radius = max(self.conv1d3x1.radius, self.conv1d3x3.radius)

    def forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, s * c, T] -> [B, s * c, T]."""
        x = blanked(x, packing)
        peaks = x if packing is None else blanked(x.clone(), packing, float("-inf"))
        y: Tensor = self.conv1d3x1(x, peaks, packing) + self.conv1d3x3(x, peaks, packing)
        return y


@register_model("gaitpart")
class GaitPart(TemporalModel):
    """2-D stages within strips, strips of each frame, micro-motions of each strip, maximum over the frames.

    It has neither batch norm nor classifier: `forward_train` gives no logits (it is trained by triplets alone).
    Convolutions and means that count zeros outside the sequence, and maxima that count nothing there, see the same
    in blank frames of 0 and -inf, so sequences share a time axis.
    """

    Options: ClassVar[type[ModelOptions]] = GaitPartOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "casiab": {},
        "gait3d": {},
        "oumvlp": {"channels": (32, 64, 128, 256), "focal_strips": (1, 1, 8, 8), "dims": 256},
        "grew": {"channels": (32, 64, 128, 256), "focal_strips": (1, 1, 8, 8), "dims": 256},
        "tiny": {"channels": (4, 8, 8), "focal_strips": (1, 2, 4), "dims": 8, "strips": 4},
    }
    gap: ClassVar[int] = 2

    def __init__(self, options: GaitPartOptions) -> None:
        super().__init__(options, strips=options.strips, dims=options.dims)
        width = options.channels[-1]
        self.Backbone = FrameBlock(nn.Sequential(OrderedDict(feature=_layers(options))))
        motions = MicroMotions(options.strips, width, width // options.squeeze)
        self.TFA = nn.ModuleDict({"pooling_func": motions})
        self.halo = motions.radius
        self.Head = SeparateFCs(options.strips, width, options.dims)
        initialise(self)

    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, 1, T, H, W] -> [B, s * channels[-1], T], strip by strip."""
        # Blank frames only now: short sequences would spend a fifth of the 2-D stages on them.
        frames = x if packing is None else torch.cat(packing.unpack(x), dim=1).unsqueeze(0)
        strips = per_frame(nn.Sequential(self.Backbone, Strips(self.strips)), frames)  # [B, s, T, c]
        series = strips.transpose(2, 3).flatten(1, 2)
        if packing is not None:
            series = packing.pack(torch.split(series[0].T, list(packing.lengths))).T.contiguous().unsqueeze(0)
        maps: Tensor = self.TFA["pooling_func"](series, packing)
        return maps

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, s * channels[-1]] -> [B, s, d]."""
        features: Tensor = self.Head(pooled.reshape(-1, *self.Head.fc_bin.shape[:2]))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Widths, s and d; `focal_strips` leaves no trace, so it is that of the published network with as many stages.

        Where none has as many, the caller has to tell it.
        """
        head, gate = shapes.get("Head.fc_bin", ()), shapes.get("TFA.pooling_func.conv1d3x1.0.0.conv.weight", ())
        matches = (re.fullmatch(r"Backbone\.forward_block\.feature\.(\d+)\.conv\.weight", key) for key in shapes)
        layers = sorted(int(match.group(1)) for match in matches if match)
        if len(head) != 3 or len(gate) != 3 or not layers or len(layers) % 2 or gate[1] % gate[0]:
            return None
        channels = tuple(shapes[f"Backbone.forward_block.feature.{layer}.conv.weight"][0] for layer in layers[::2])
        options = {"channels": channels, "squeeze": gate[1] // gate[0], "dims": head[2], "strips": head[0]}
        focal = {len(strips): strips for strips in ((1, 4, 8), (1, 1, 8, 8))}.get(len(channels))
        return options if focal is None else {**options, "focal_strips": focal}


def _layers(options: GaitPartOptions) -> nn.Sequential:
    """Two convolutions per stage, each followed by a leaky ReLU; the very first is 5x5."""
    layers: list[nn.Module] = []
    c_in = 1
    for stage, (width, strips) in enumerate(zip(options.channels, options.focal_strips, strict=True)):
        for kernel in (3 if stage else 5, 3):
            layers += [FocalConv2d(c_in, width, kernel, strips=strips), nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
            c_in = width
        if stage < _POOLS:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
