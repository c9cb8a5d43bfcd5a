"""SkeletonGait++ (Fan et al., AAAI 2024): skeleton maps and silhouettes, fused per frame, in DeepGaitV2's stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gaitsdk.models.blocks import (
    FrameBlock,
    SeparateBNNecks,
    SeparateFCs,
    channels_last,
    horizontal_pyramid_pooling,
    initialise,
    per_frame,
)
from gaitsdk.models.options import ModelOptions, count_blocks
from gaitsdk.models.packing import Packing
from gaitsdk.models.registry import register_model
from gaitsdk.models.residual import BlockP3D, TemporalStage, stage_2d, stem
from gaitsdk.models.temporal import TemporalModel


@dataclass(frozen=True, kw_only=True)
class SkeletonGaitPPOptions(ModelOptions):
    """Defaults: the published network for Gait3D and GREW; CCPG and SUSTech1K use layers (1, 1, 1, 1).

    Attributes:
        channels, layers: width and number of blocks of the four stages; the first exists twice, for the skeleton maps
            and for the silhouette; stages 2 and 3 halve height and width.
        fusion_channels: width inside the small network that weighs the two against each other.
        dims: d of the feature map; published: the width of stage 3.
        strips: s of the feature map; divides the height of the last map.
        num_classes: identities of the training set, None for a network without classifier.
        embedding: "fc" = the strips' linear maps; "bnneck" = after the BN neck, unit norm per strip, which some
            published checkpoints need.
    """

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] = (1, 4, 4, 1)
    fusion_channels: int = 4
    dims: int = 256
    strips: int = 16
    num_classes: int | None = None
    embedding: str = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "layers"):
            self.check_ints(name, count=4)
        for name in ("fusion_channels", "dims", "strips"):
            self.check_int(name)
        self.check_int("num_classes", optional=True)
        self.check_choice("embedding", ("fc", "bnneck"))
        self.check_bins((self.strips,), -(-self.size[0] // 4), "strips, or size (the map has a quarter of its height)")


class AttentionFusion(nn.Module):
    """A weighted mean of two maps, the weights from both, for each channel and pixel. State: `conv.forward_block.*`."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv = FrameBlock(
            nn.Sequential(
                nn.Conv2d(2 * channels, squeezed, 1, bias=False),
                nn.BatchNorm2d(squeezed),
                nn.ReLU(inplace=True),
                nn.Conv2d(squeezed, squeezed, 3, padding=1, bias=False),
                nn.BatchNorm2d(squeezed),
                nn.ReLU(inplace=True),
                nn.Conv2d(squeezed, 2 * channels, 1, bias=False),
            )
        )

    def forward(self, silhouette: Tensor, skeleton: Tensor) -> Tensor:
        """Two maps [N, c, h, w] -> [N, c, h, w]."""
        first, second = self.conv(torch.cat([silhouette, skeleton], dim=1)).chunk(2, dim=1)
        # The softmax over two scores is the sigmoid of their difference.
        return skeleton + torch.sigmoid(first - second) * (silhouette - skeleton)


class FusedStreams(nn.Module):
    """Both streams of a frame, fused; holds no parameters of its own."""

    def __init__(self, skeleton: nn.Module, silhouette: nn.Module, fusion: AttentionFusion) -> None:
        super().__init__()
        self.skeleton, self.silhouette, self.fusion = skeleton, silhouette, fusion

    def forward(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W], limbs, joints and silhouette -> [N, c, H, W]."""
        silhouette = self.silhouette(channels_last(frames[:, 2:]))
        fused: Tensor = self.fusion(silhouette, self.skeleton(channels_last(frames[:, :2])))
        return fused


@register_model("skeletongait++")
class SkeletonGaitPP(TemporalModel):
    """Two 2-D streams fused per frame, P3D stages 2 to 4, maximum over the frames, strips, BN neck.

    It reads [B, T, 3, H, W]: limb map, joint map and silhouette of each frame, 0..1. Nothing but convolutions of
    zero-padded sequences looks across time, so sequences share a time axis with blank frames between them.
    """

    Options: ClassVar[type[ModelOptions]] = SkeletonGaitPPOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gait3d": {},
        "grew": {},
        "ccpg": {"layers": (1, 1, 1, 1)},
        "sustech1k": {"layers": (1, 1, 1, 1)},
        "tiny": {"channels": (4, 4, 8, 8), "layers": (1, 2, 1, 1), "fusion_channels": 2, "dims": 8, "strips": 4},
    }
    input_channels: ClassVar[int] = 3

    def __init__(self, options: SkeletonGaitPPOptions) -> None:
        super().__init__(options, strips=options.strips, dims=options.dims)
        c1, c2, c3, c4 = options.channels
        first, second, third, fourth = options.layers
        self.map_layer0, self.map_layer1 = stem(2, c1), stage_2d(c1, c1, first)
        self.sil_layer0, self.sil_layer1 = stem(1, c1), stage_2d(c1, c1, first)
        self.fusion = AttentionFusion(c1, options.fusion_channels)
        self.layer2 = TemporalStage(BlockP3D, c1, c2, second, stride=2)
        self.layer3 = TemporalStage(BlockP3D, c2, c3, third, stride=2)
        self.layer4 = TemporalStage(BlockP3D, c3, c4, fourth)
        self.halo = self.layer2.radius + self.layer3.radius + self.layer4.radius
        self.FCs = SeparateFCs(options.strips, c4, options.dims)
        self.BNNecks: SeparateBNNecks | None = None
        if options.num_classes is not None or options.embedding == "bnneck":
            self.BNNecks = SeparateBNNecks(options.strips, options.dims, options.num_classes)
        initialise(self)

    @property
    def neck(self) -> SeparateBNNecks | None:
        """The BN neck, where there is a classifier or the embedding needs it."""
        return self.BNNecks

    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, 3, T, H, W] -> [B, channels[3], T, ceil(H / 4), ceil(W / 4)]."""
        skeleton = nn.Sequential(self.map_layer0, self.map_layer1)
        silhouette = nn.Sequential(self.sil_layer0, self.sil_layer1)
        x = per_frame(FusedStreams(skeleton, silhouette, self.fusion), x)
        for stage in (self.layer2, self.layer3, self.layer4):
            x = stage(x, packing)
        return x

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, channels[3], h, w] -> [B, s, d]."""
        features: Tensor = self.FCs(horizontal_pyramid_pooling(pooled, (self.strips,)))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but `embedding` and `size`."""
        stages = ("map_layer1.forward_block", "layer2", "layer3", "layer4")
        widths = ["map_layer0.forward_block.0.weight"]
        widths += [f"layer{i}.0.conv1.forward_block.0.weight" for i in (2, 3, 4)]
        squeeze, head = "fusion.conv.forward_block.0.weight", shapes.get("FCs.fc_bin", ())
        if not {*widths, squeeze, "sil_layer0.forward_block.0.weight"} <= shapes.keys() or len(head) != 3:
            return None
        classifier = shapes.get("BNNecks.fc_bin")
        return {
            "channels": tuple(shapes[key][0] for key in widths),
            "layers": tuple(count_blocks(shapes, stage) for stage in stages),
            "fusion_channels": shapes[squeeze][0],
            "dims": head[2],
            "strips": head[0],
            "num_classes": classifier[-1] if classifier else None,
        }
