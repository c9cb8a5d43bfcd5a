"""GaitBase (Fan et al., OpenGait, CVPR 2023): a four-stage residual network per frame, set maximum, strips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.models.base import FrameSetModel
from gaitsdk.models.blocks import (
    BasicBlock2d,
    BasicConv2d,
    FrameBlock,
    SeparateBNNecks,
    SeparateFCs,
    horizontal_pyramid_pooling,
    initialise,
)
from gaitsdk.models.options import ModelOptions, count_blocks
from gaitsdk.models.registry import register_model

_STAGES = (1, 2, 3, 4)
_PREFIX = "Backbone.forward_block"


@dataclass(frozen=True, kw_only=True)
class GaitBaseOptions(ModelOptions):
    """Defaults: the published network (every data set differs only in `num_classes`), without classifier.

    Attributes:
        channels, layers, strides: width, number of blocks and stride of the four stages.
        stem_stride: stride of the first convolution; 2 makes a network of a quarter of the cost.
        dims: d of the feature map.
        strips: s of the feature map; divides the height of the last map.
        num_classes: identities of the training set, None for a network without classifier.
        embedding: "fc" = the strips' linear maps, as published; "bnneck" = after the BN neck, unit norm per strip.
    """

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    strides: tuple[int, int, int, int] = (1, 2, 2, 1)
    stem_stride: int = 1
    dims: int = 256
    strips: int = 16
    num_classes: int | None = None
    embedding: str = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "layers", "strides"):
            self.check_ints(name, count=4)
        for name in ("stem_stride", "dims", "strips"):
            self.check_int(name)
        self.check_int("num_classes", optional=True)
        self.check_choice("embedding", ("fc", "bnneck"))
        height = self.size[0]
        for stride in (self.stem_stride, *self.strides):
            height = -(-height // stride)
        self.check_bins((self.strips,), height, "strips, or strides and stem_stride, or size")


class ResNet9(nn.Module):
    """Stem 3x3, BN, ReLU (no pooling), then four stages of residual blocks. State: `conv1 bn1 layer1 .. layer4`."""

    def __init__(self, options: GaitBaseOptions) -> None:
        super().__init__()
        width = options.channels[0]
        self.conv1 = BasicConv2d(1, width, 3, stride=options.stem_stride, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        stages = []
        for channels, count, stride in zip(options.channels, options.layers, options.strides, strict=True):
            blocks = [BasicBlock2d(width, channels, stride)]
            blocks += [BasicBlock2d(channels, channels) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            width = channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, frames: Tensor) -> Tensor:
        """[N, 1, H, W] -> [N, channels[3], h, w]; 64x44 gives 16x11 with the default strides."""
        y = F.relu(self.bn1(self.conv1(frames)))
        y = self.layer2(self.layer1(y))
        maps: Tensor = self.layer4(self.layer3(y))
        return maps


@register_model("gaitbase")
class GaitBase(FrameSetModel):
    """ResNet9 per frame, maximum over the frames, s strips, one linear map per strip, BN neck for the classifier."""

    Options: ClassVar[type[ModelOptions]] = GaitBaseOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "casiab": {},
        "oumvlp": {},
        "gait3d": {},
        "grew": {},
        "tiny": {"channels": (4, 6, 8, 10), "dims": 12},
    }

    def __init__(self, options: GaitBaseOptions) -> None:
        super().__init__(options, strips=options.strips, dims=options.dims)
        self.Backbone = FrameBlock(ResNet9(options))
        self.FCs = SeparateFCs(options.strips, options.channels[-1], options.dims)
        self.BNNecks: SeparateBNNecks | None = None
        if options.num_classes is not None or options.embedding == "bnneck":
            self.BNNecks = SeparateBNNecks(options.strips, options.dims, options.num_classes)
        initialise(self)

    @property
    def neck(self) -> SeparateBNNecks | None:
        """The BN neck, where there is a classifier or the embedding needs it."""
        return self.BNNecks

    def frame_maps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """[N, 1, H, W] -> one map [N, channels[3], h, w]."""
        return (self.Backbone(frames),)

    def set_features(self, pooled: tuple[Tensor, ...]) -> Tensor:
        """The set maximum [B, channels[3], h, w] -> [B, s, d]."""
        features: Tensor = self.FCs(horizontal_pyramid_pooling(pooled[0], (self.strips,)))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but strides, which leave no trace in shapes: those are the published ones unless told."""
        firsts = [f"{_PREFIX}.layer{i}.0.conv1.weight" for i in _STAGES]
        required = {f"{_PREFIX}.conv1.conv.weight", "FCs.fc_bin", *firsts}
        if not required <= shapes.keys() or len(shapes["FCs.fc_bin"]) != 3:
            return None
        strips, _, dims = shapes["FCs.fc_bin"]
        classifier = shapes.get("BNNecks.fc_bin")
        return {
            "channels": tuple(shapes[key][0] for key in firsts),
            "layers": tuple(count_blocks(shapes, f"{_PREFIX}.layer{stage}") for stage in _STAGES),
            "dims": dims,
            "strips": strips,
            "num_classes": classifier[-1] if classifier else None,
        }
