"""DeepGaitV2 (Fan et al., 2023): a deep residual network in 2-D, pseudo-3-D or 3-D, temporal maximum, strips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gaitsdk.models.blocks import (
    FrameBlock,
    SeparateBNNecks,
    SeparateFCs,
    horizontal_pyramid_pooling,
    initialise,
    per_frame,
)
from gaitsdk.models.options import ModelOptions, count_blocks
from gaitsdk.models.packing import Packing
from gaitsdk.models.registry import register_model
from gaitsdk.models.residual import Block3D, BlockP3D, TemporalStage, stage_2d, stem
from gaitsdk.models.temporal import TemporalModel

_TEMPORAL: dict[str, type[BlockP3D | Block3D]] = {"p3d": BlockP3D, "3d": Block3D}


@dataclass(frozen=True, kw_only=True)
class DeepGaitV2Options(ModelOptions):
    """Defaults: the published P3D network for Gait3D and GREW; CASIA-B and OU-MVLP use layers (1, 1, 1, 1).

    Attributes:
        mode: what stages 2 to 4 are made of: "p3d" (published), "2d" or "3d". Stage 1 is 2-D in all.
        channels, layers: width and number of blocks of the four stages; stages 2 and 3 halve height and width.
        dims: d of the feature map; published: the width of stage 3.
        strips: s of the feature map; divides the height of the last map.
        num_classes: identities of the training set, None for a network without classifier.
        embedding: "fc" = the strips' linear maps; "bnneck" = after the BN neck, unit norm per strip, which some
            published checkpoints need.
    """

    mode: str = "p3d"
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] = (1, 4, 4, 1)
    dims: int = 256
    strips: int = 16
    num_classes: int | None = None
    embedding: str = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("mode", ("2d", *_TEMPORAL))
        for name in ("channels", "layers"):
            self.check_ints(name, count=4)
        for name in ("dims", "strips"):
            self.check_int(name)
        self.check_int("num_classes", optional=True)
        self.check_choice("embedding", ("fc", "bnneck"))
        self.check_bins((self.strips,), -(-self.size[0] // 4), "strips, or size (the map has a quarter of its height)")


@register_model("deepgaitv2")
class DeepGaitV2(TemporalModel):
    """Stem and stage 1 in 2-D, stages 2 to 4 in the mode's blocks, maximum over the frames, strips, BN neck.

    Nothing but convolutions of zero-padded sequences looks across time, so sequences share a time axis with blank
    frames between them.
    """

    Options: ClassVar[type[ModelOptions]] = DeepGaitV2Options
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"channels": (4, 6, 8, 10), "layers": (1, 2, 1, 1), "dims": 12, "strips": 8},
        "gait3d": {},
        "grew": {},
        "casiab": {"layers": (1, 1, 1, 1)},
        "oumvlp": {"layers": (1, 1, 1, 1)},
        "ccpg": {"layers": (1, 1, 1, 1)},
        "sustech1k": {"layers": (1, 1, 1, 1)},
    }

    def __init__(self, options: DeepGaitV2Options) -> None:
        super().__init__(options, strips=options.strips, dims=options.dims)
        (c1, c2, c3, c4), (n1, n2, n3, n4) = options.channels, options.layers
        self.layer0 = stem(1, c1)
        self.layer1 = stage_2d(c1, c1, n1)
        self.layer2 = _stage(options.mode, c1, c2, n2, stride=2)
        self.layer3 = _stage(options.mode, c2, c3, n3, stride=2)
        self.layer4 = _stage(options.mode, c3, c4, n4, stride=1)
        stages = (self.layer2, self.layer3, self.layer4)
        self.halo = sum(stage.radius for stage in stages if isinstance(stage, TemporalStage))
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
        """[B, 1, T, H, W] -> [B, channels[3], T, ceil(H / 4), ceil(W / 4)]."""
        x = per_frame(nn.Sequential(self.layer0, self.layer1), x)
        for stage in (self.layer2, self.layer3, self.layer4):
            x = per_frame(stage, x) if isinstance(stage, FrameBlock) else stage(x, packing)
        return x

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, channels[3], h, w] -> [B, s, d]."""
        features: Tensor = self.FCs(horizontal_pyramid_pooling(pooled, (self.strips,)))
        return features

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything; the mode from the names of stage 2 and the rank of its first convolution."""
        found = _MODE_OF_KEY.keys() & shapes.keys()
        head = shapes.get("FCs.fc_bin", ())
        if "layer0.forward_block.0.weight" not in shapes or len(found) != 1 or len(head) != 3:
            return None
        mode, prefixes = _MODE_OF_KEY[found.pop()]
        layers = tuple(count_blocks(shapes, prefix) for prefix in ("layer1.forward_block", *prefixes))
        widths = [f"{prefix}.0.{_FIRST[mode]}" for prefix in prefixes]
        if 0 in layers or not set(widths) <= shapes.keys():
            return None
        classifier = shapes.get("BNNecks.fc_bin")
        return {
            "mode": mode,
            "channels": (shapes["layer0.forward_block.0.weight"][0], *(shapes[key][0] for key in widths)),
            "layers": layers,
            "dims": head[2],
            "strips": head[0],
            "num_classes": classifier[-1] if classifier else None,
        }


_FIRST = {"2d": "conv1.weight", "p3d": "conv1.forward_block.0.weight", "3d": "conv1.weight"}
_STAGES = {
    "2d": ("layer2.forward_block", "layer3.forward_block", "layer4.forward_block"),
    "p3d": ("layer2", "layer3", "layer4"),
    "3d": ("layer2", "layer3", "layer4"),
}
_MODE_OF_KEY = {f"{_STAGES[mode][0]}.0.{_FIRST[mode]}": (mode, _STAGES[mode]) for mode in _STAGES}


def _stage(mode: str, c_in: int, c_out: int, blocks: int, stride: int) -> FrameBlock | TemporalStage:
    if mode == "2d":
        return stage_2d(c_in, c_out, blocks, stride)
    return TemporalStage(_TEMPORAL[mode], c_in, c_out, blocks, stride)
