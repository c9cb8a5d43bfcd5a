"""SwinGait-3D (Fan et al., 2023): DeepGaitV2's first stages, then shifted-window attention over time and space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gaitsdk.models.blocks import (
    SeparateBNNecks,
    SeparateFCs,
    horizontal_pyramid_pooling,
    initialise,
    is_exporting,
    per_frame,
)
from gaitsdk.models.options import ModelOptions, count_blocks
from gaitsdk.models.packing import Packing
from gaitsdk.models.registry import register_model
from gaitsdk.models.residual import BlockP3D, TemporalStage, stage_2d, stem
from gaitsdk.models.temporal import TemporalModel
from gaitsdk.models.windows import WINDOW, Slots, TokenGrid, WindowBlock

#: The map of a frame is resized to twice this, rows and columns of tokens: whole windows.
GRID = (15, 10)


@dataclass(frozen=True, kw_only=True)
class SwinGait3DOptions(ModelOptions):
    """Defaults: the published network for Gait3D and GREW (B1442); CCPG and SUSTech1K use layers (1, 1, 2, 2).

    Attributes:
        size: only 64x44: the windows fit the 15x10 tokens of its frames.
        channels, layers: width and number of blocks of two convolutional stages, then of two stages of windows.
        heads: attention heads of the two stages of windows; divide their widths.
        dims: d of the feature map.
        drop_path: probability, in training, that a sequence skips a branch of the last block of windows; grows from 0
            at the first.
        num_classes: identities of the training set, None for a network without classifier.
        embedding: "fc" = the strips' linear maps; "bnneck" = after the BN neck, unit norm per strip.
    """

    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] = (1, 4, 4, 2)
    heads: tuple[int, int] = (16, 32)
    dims: int = 256
    drop_path: float = 0.1
    num_classes: int | None = None
    embedding: str = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != (64, 44):
            raise self._refusal("size", "(64, 44)", "cut 64x64 silhouettes to 44 columns")
        for name in ("channels", "layers"):
            self.check_ints(name, count=4)
        self.check_ints("heads", count=2)
        if any(width % heads for width, heads in zip(self.channels[2:], self.heads, strict=True)):
            raise self._refusal("heads", f"divisors of the widths {self.channels[2:]}", "change heads or channels")
        self.check_int("dims")
        self.check_fraction("drop_path")
        self.check_int("num_classes", optional=True)
        self.check_choice("embedding", ("fc", "bnneck"))


@register_model("swingait3d")
class SwinGait3D(TemporalModel):
    """Stem and stage 1 in 2-D, a P3D stage, two stages of windows, maximum over the frames, 15 strips, BN neck.

    The published networks have weights for a 16th strip that is a copy of the 15th and is dropped at the end. Here F
    and the logits have the 15 strips that count; the weights of the 16th are kept with the others and learn nothing.

    The answer for a sequence depends on its length modulo 3, since padding to whole windows of 3 frames is seen by the
    attention, as in the published networks.
    """

    Options: ClassVar[type[ModelOptions]] = SwinGait3DOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gait3d": {},
        "grew": {},
        "ccpg": {"layers": (1, 1, 2, 2)},
        "sustech1k": {"layers": (1, 1, 2, 2)},
        "tiny": {"channels": (4, 6, 8, 12), "layers": (1, 1, 2, 2), "heads": (2, 3), "dims": 12},
    }
    ignored_keys: ClassVar[frozenset[str]] = frozenset({"relative_position_index"})
    step: ClassVar[int] = WINDOW[0]

    def __init__(self, options: SwinGait3DOptions) -> None:
        super().__init__(options, strips=GRID[0], dims=options.dims)
        c1, c2, _, c4 = options.channels
        self.layer0 = stem(1, c1)
        self.layer1 = stage_2d(c1, c1, options.layers[0])
        self.layer2 = TemporalStage(BlockP3D, c1, c2, options.layers[1], 2)
        self.transformer = WindowTransformer(options)
        self.halo = self.layer2.radius + self.transformer.radius
        self.FCs = SeparateFCs(self.strips + 1, c4, options.dims)
        self.BNNecks: SeparateBNNecks | None = None
        if options.num_classes is not None or options.embedding == "bnneck":
            self.BNNecks = _BNNecks(self.strips + 1, options.dims, options.num_classes)
        initialise(self)

    @property
    def neck(self) -> SeparateBNNecks | None:
        """The BN neck, where there is a classifier or the embedding needs it."""
        return self.BNNecks

    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, 1, T, 64, 44] -> [B, channels[3], T, 15, 10]."""
        x = per_frame(nn.Sequential(self.layer0, self.layer1), x)
        x = self.layer2(x, packing)
        x = per_frame(nn.UpsamplingBilinear2d(size=(2 * GRID[0], 2 * GRID[1])), x)
        maps: Tensor = self.transformer(x, packing)
        return maps

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, channels[3], 15, 10] -> [B, 15, d]."""
        strips = horizontal_pyramid_pooling(pooled, (self.strips,))
        features: Tensor = self.FCs(_with_last_twice(strips))
        return features[:, :-1].contiguous()

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but `drop_path`, which matters in training only."""
        heads = [shapes.get(f"transformer.layers.{i}.blocks.0.attn.relative_position_bias_table", ()) for i in (0, 1)]
        stages = ("layer1.forward_block", "layer2", "transformer.layers.0.blocks", "transformer.layers.1.blocks")
        widths = [shapes.get(key, ()) for key in _WIDTHS]
        head = shapes.get("FCs.fc_bin", ())
        if not all(widths) or len(head) != 3 or any(len(table) != 2 for table in heads):
            return None
        classifier = shapes.get("BNNecks.fc_bin")
        return {
            "channels": tuple(width[0] for width in widths),
            "layers": tuple(count_blocks(shapes, stage) for stage in stages),
            "heads": tuple(table[1] for table in heads),
            "dims": head[2],
            "num_classes": classifier[-1] if classifier else None,
        }


_WIDTHS = (
    "layer0.forward_block.0.weight",
    "layer2.0.conv1.forward_block.0.weight",
    "transformer.patch_embed.proj.weight",
    "transformer.norm.weight",
)


class WindowTransformer(nn.Module):
    """Maps to tokens, two stages of windows, layer norm. State: `patch_embed.* layers.* norm.*`."""

    def __init__(self, options: SwinGait3DOptions) -> None:
        super().__init__()
        _, c2, c3, c4 = options.channels
        first, second = options.layers[2:]
        rates = torch.linspace(0.0, options.drop_path, first + second, device="cpu").tolist()
        self.patch_embed = PatchEmbedding(c2, c3)
        self.layers = nn.ModuleList(
            [
                WindowStage(c3, options.heads[0], rates[:first], c4),
                WindowStage(c4, options.heads[1], rates[first:], None),
            ]
        )
        self.norm = nn.LayerNorm(c4)
        # A shifted window reaches 2 frames back and 1 on, and the un-shifted ones before it are whole.
        self.radius = WINDOW[0] * (first // 2 + second // 2)

    def forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, c, T, 30, 20] -> [B, c', T, 15, 10]."""
        slots = Slots.of(x.shape[2], packing, x.device)
        # A graph must serve every length, so it has the mask that only sequences shorter than a window need.
        lengths = (x.shape[2],) if packing is None else packing.lengths
        masked = is_exporting() or min(lengths) < WINDOW[0]
        grid = TokenGrid(slots, *GRID, x.dtype, masked=masked)
        tokens = self.patch_embed(x).index_select(1, slots.source).flatten(1, 3).index_select(1, grid.order)
        for stage in self.layers:
            tokens = stage(tokens, grid)
        maps = self.norm(tokens).index_select(1, grid.place).unflatten(1, (-1, *GRID)).index_select(1, slots.back)
        channels_first: Tensor = maps.permute(0, 4, 1, 2, 3)
        return channels_first


class PatchEmbedding(nn.Module):
    """One token for 2 x 2 cells of a frame's map, layer norm. State: `proj norm`."""

    def __init__(self, c_in: int, dims: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(c_in, dims, (1, 2, 2), stride=(1, 2, 2))
        self.norm = nn.LayerNorm(dims)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, T, h, w] -> [B, T, h / 2, w / 2, dims]."""
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 4, 1))
        return tokens


class WindowStage(nn.Module):
    """Blocks, every second with shifted windows, then a wider token where `c_out` says so.

    State: `blocks.* downsample.0/.1`.
    """

    def __init__(self, dims: int, heads: int, drop_path: list[float], c_out: int | None) -> None:
        super().__init__()
        blocks = [WindowBlock(dims, heads, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(drop_path)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample: nn.Module | None = None
        if c_out is not None:
            self.downsample = nn.Sequential(nn.LayerNorm(dims), nn.Linear(dims, c_out, bias=False))

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """[B, L, dims] -> [B, L, c_out or dims]."""
        for block in self.blocks:
            x = block(x, grid)
        return x if self.downsample is None else self.downsample(x)


class _BNNecks(SeparateBNNecks):
    """A BN neck with weights for one strip more than it is given, which counts for nothing."""

    def normalise(self, features: Tensor) -> Tensor:
        return super().normalise(_with_last_twice(features))[:, :-1].contiguous()

    def logits(self, normalised: Tensor) -> Tensor:
        return super().logits(_with_last_twice(normalised))[:, :-1].contiguous()


def _with_last_twice(strips: Tensor) -> Tensor:
    """[B, s, c] -> [B, s + 1, c]; nothing is learned through the copy."""
    return torch.cat([strips, strips[:, -1:].detach()], dim=1)
