"""GLN (Hou et al., ECCV 2020): gait lateral network, a pyramid of silhouette-level and set-level features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.errors import OptionError
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

_STAGES = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class GLNOptions(ModelOptions):
    """Defaults: the published network at 64x44; on CASIA-B it takes `size=(128, 88)`.

    Attributes:
        channels: widths of the three stages.
        lateral_dims: width of the top-down pyramid.
        dims: d of the feature map.
        bins: strips of each level of the pooling; s = 3 * sum(bins) (fine, middle and coarse map).
        num_classes: identities of the training set: adds the compact block, which is training phase 2; None = phase 1.
        hidden_dims: what the compact block shrinks all s * d features to.
        dropout: share of the features that the compact block drops in training.
    """

    channels: tuple[int, int, int] = (32, 64, 128)
    lateral_dims: int = 256
    dims: int = 256
    bins: tuple[int, ...] = (16, 8, 4, 2, 1)
    num_classes: int | None = None
    hidden_dims: int = 256
    dropout: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ints("channels", count=3)
        for name in ("lateral_dims", "dims", "hidden_dims"):
            self.check_int(name)
        self.check_ints("bins")
        self.check_int("num_classes", optional=True)
        self.check_fraction("dropout")
        if self.size[0] % 4 or self.size[1] % 4:
            raise OptionError(
                "the pyramid halves its maps twice and doubles them again", where=type(self).__name__,
                got=f"size={self.size}", expected="height and width divisible by 4", fix="change size",
            )  # fmt: skip
        self.check_bins(self.bins, self.size[0] // 4, "bins, or size (the coarse map has a quarter of its height)")


def _stage(c_in: int, c_out: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        BasicConv2d(c_in, c_out, kernel, padding=kernel // 2),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        BasicConv2d(c_out, c_out, 3, padding=1),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


@register_model("gln")
class GLN(FrameSetModel):
    """Three 2-D stages per frame beside a line of set-level stages; both meet in a top-down pyramid of three maps.

    The feature map is the head's output in both training phases. The compact block of phase 2 only feeds the
    cross-entropy loss: one classifier for all strips.
    """

    Options: ClassVar[type[ModelOptions]] = GLNOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "casiab": {"size": (128, 88)},
        "gait3d": {},
        "tiny": {"channels": (4, 6, 8), "lateral_dims": 8, "dims": 12},
    }

    def __init__(self, options: GLNOptions) -> None:
        super().__init__(options, strips=3 * sum(options.bins), dims=options.dims)
        (c1, c2, c3), width = options.channels, options.lateral_dims
        self.bins = options.bins
        self.sil_stage_0 = FrameBlock(_stage(1, c1, kernel=5))
        self.sil_stage_1 = FrameBlock(_stage(c1, c2))
        self.sil_stage_2 = FrameBlock(_stage(c2, c3))
        self.set_stage_1 = _stage(c1, c2)
        self.set_stage_2 = _stage(c2, c3)
        self.lateral_layer1, self.lateral_layer2, self.lateral_layer3 = (
            nn.Conv2d(2 * channels, width, 1, bias=False) for channels in options.channels
        )
        self.smooth_layer1, self.smooth_layer2, self.smooth_layer3 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in _STAGES
        )
        self.Head = SeparateFCs(self.strips, width, options.dims)
        if options.num_classes is not None:
            self._add_compact_block(options.num_classes, options.hidden_dims, options.dropout)
        initialise(self)

    def _add_compact_block(self, classes: int, hidden: int, dropout: float) -> None:
        self.encoder_bn = nn.BatchNorm1d(self.strips * self.dims)
        self.reduce_dp = nn.Dropout(dropout)
        self.reduce_fc = nn.Linear(self.strips * self.dims, hidden, bias=False)
        self.reduce_bn = nn.BatchNorm1d(hidden)
        self.reduce_cls = nn.Linear(hidden, classes, bias=False)
        for norm in (self.encoder_bn, self.reduce_bn):
            norm.bias.requires_grad_(False)  # as in the published recipe: features stay centred

    def frame_maps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """[N, 1, H, W] -> maps of the three stages, [N, c1, H, W], [N, c2, H/2, W/2], [N, c3, H/4, W/4]."""
        first = self.sil_stage_0(frames)
        second = self.sil_stage_1(F.max_pool2d(first, 2))
        third = self.sil_stage_2(F.max_pool2d(second, 2))
        return first, second, third

    def set_features(self, pooled: tuple[Tensor, ...]) -> Tensor:
        """Set maxima of the three stages -> [B, s, d]."""
        first, second, third = pooled
        # Maxima over pixels and over frames commute, so pooling the set maximum is enough.
        line1 = self.set_stage_1(F.max_pool2d(first, 2)) + second
        line2 = self.set_stage_2(F.max_pool2d(line1, 2)) + third
        coarse = self.lateral_layer3(torch.cat([third, line2], dim=1))
        middle = self.lateral_layer2(torch.cat([second, line1], dim=1)) + _doubled(coarse)
        # The first stage has no set-level partner and is its own.
        fine = self.lateral_layer1(torch.cat([first, first], dim=1)) + _doubled(middle)
        maps = (self.smooth_layer1(fine), self.smooth_layer2(middle), self.smooth_layer3(coarse))
        strips = [horizontal_pyramid_pooling(each, self.bins) for each in maps]
        features: Tensor = self.Head(torch.cat(strips, dim=1))
        return features

    def classify(self, features: Tensor) -> Tensor | None:
        """[B, s, d] -> logits of the compact block [B, 1, C], None in phase 1."""
        if getattr(self.config, "num_classes", None) is None:
            return None
        flat = self.encoder_bn(features.transpose(1, 2).flatten(1))  # index = dim * s + strip
        compact = self.reduce_fc(F.relu(self.reduce_dp(flat)))
        logits: Tensor = self.reduce_cls(self.reduce_bn(compact))
        return logits.unsqueeze(1)

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but size and dropout, which leave no trace in shapes."""
        stages = [f"sil_stage_{i}.forward_block.0.conv.weight" for i in _STAGES]
        required = {*stages, "set_stage_1.0.conv.weight", "lateral_layer1.weight", "Head.fc_bin"}
        if not required <= shapes.keys() or len(shapes["Head.fc_bin"]) != 3:
            return None
        strips, _, dims = shapes["Head.fc_bin"]
        options: dict[str, Any] = {
            "channels": tuple(shapes[key][0] for key in stages),
            "lateral_dims": shapes["lateral_layer1.weight"][0],
            "dims": dims,
        }
        bins = halving_pyramid(strips // 3)
        if bins is not None:
            options["bins"] = bins
        if "reduce_cls.weight" in shapes:
            options["num_classes"], options["hidden_dims"] = shapes["reduce_cls.weight"]
        return options


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
