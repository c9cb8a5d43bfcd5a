"""GaitGL (Lin et al., ICCV 2021): 3-D convolutions that see the whole silhouette and its horizontal strips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.errors import OptionError
from gaitsdk.models.blocks import LEAKY_SLOPE, Conv3d, SeparateBNNecks, SeparateFCs, initialise, is_exporting
from gaitsdk.models.options import ModelOptions
from gaitsdk.models.packing import Packing, blanked
from gaitsdk.models.registry import register_model
from gaitsdk.models.temporal import TemporalModel

#: Frames that make one interval: kernel and stride in time of the local temporal aggregation.
INTERVAL = 3
_STAGES = ("GLConvA0", "GLConvA1", "GLConvB2")


@dataclass(frozen=True, kw_only=True)
class GaitGLOptions(ModelOptions):
    """Defaults: the published network for CASIA-B and Gait3D; OU-MVLP and GREW use twice the layers, and two halves.

    Attributes:
        channels: widths of the stem and of the three stages; the first stage halves height and width.
        layers: convolutions of the stem, and global-local convolutions of each stage.
        halving: the local convolutions see 2 ** halving horizontal strips; leaves no trace in a checkpoint.
        dims: d of the feature map.
        strips: s of the feature map; divides the height of the last map, which is that of the input.
        num_classes: identities of the training set, None for a network without classifier.
        head: "shared_bn" (published) = one batch norm for all strips after the linear maps, the features are its
            output; "bnneck" = the features are the linear maps' output, a BN neck follows.
        embedding: "fc" = these features; "bnneck" = after the BN neck of that head, unit norm per strip.
    """

    channels: tuple[int, int, int, int] = (32, 64, 128, 128)
    layers: int = 1
    halving: int = 3
    dims: int = 128
    strips: int = 64
    num_classes: int | None = None
    head: str = "shared_bn"
    embedding: str = "fc"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ints("channels", count=4)
        for name in ("layers", "halving", "dims", "strips"):
            self.check_int(name)
        self.check_int("num_classes", optional=True)
        self.check_choice("head", ("shared_bn", "bnneck"))
        self.check_choice("embedding", ("fc", "bnneck"))
        if self.embedding == "bnneck" and self.head != "bnneck":
            raise OptionError(
                "this network has no BN neck", where=type(self).__name__, got="embedding='bnneck', head='shared_bn'",
                expected="embedding='fc'", fix="choose embedding='fc', or head='bnneck' if the network has that head",
            )  # fmt: skip
        if self.size[0] % 2 ** (self.halving + 1):
            raise OptionError(
                f"maps of the input's height and of half of it are cut into {2**self.halving} equal strips",
                where=type(self).__name__, got=f"size={self.size}",
                expected=f"a height divisible by {2 ** (self.halving + 1)}", fix="change size or halving",
            )  # fmt: skip
        self.check_bins((self.strips,), self.size[0], "strips, or size (the last map is as high as the input)")


class BasicConv3d(nn.Module):
    """A bare 3-D convolution: no bias, no normalisation. State: `conv3d.weight`."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.conv3d = Conv3d(c_in, c_out, kernel, stride=stride, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T', h', w']."""
        y: Tensor = self.conv3d(x)
        return y


def local_aggregation(channels: int) -> nn.Sequential:
    """Three frames become one interval, T -> T // 3; frames that fill none are left out. State: `0.conv3d.weight`."""
    whole = (INTERVAL, 1, 1)
    conv = BasicConv3d(channels, channels, whole, stride=whole, padding=(0, 0, 0))
    return nn.Sequential(conv, nn.LeakyReLU(LEAKY_SLOPE, inplace=True))


class IntervalModel(TemporalModel):
    """A backbone that looks at intervals of three frames, and so at no sequence of fewer."""

    least_frames: ClassVar[int] = INTERVAL
    stride: ClassVar[int] = INTERVAL
    step: ClassVar[int] = INTERVAL

    def lengthen(self, x: Tensor) -> Tensor:
        """Too few frames are repeated until they fill an interval: one becomes three, two become four (0, 1, 0, 1)."""
        if is_exporting() or x.shape[1] >= INTERVAL:
            return x
        return x.repeat(1, -(-INTERVAL // x.shape[1]), *(1,) * (x.dim() - 2))


def one_channel_last(x: Tensor) -> Tensor:
    """[B, 1, T, h, w] with strides that tell a convolution to give its result with channels last in memory."""
    if is_exporting():
        return x
    # One channel: both layouts are the same memory, and only strides tell which one is meant.
    return x.squeeze(1).unsqueeze(-1).permute(0, 4, 1, 2, 3)


class GLConv(nn.Module):
    """Global and local 3-D convolution of the same maps; the local one pads each horizontal strip on its own.

    State: `global_conv3d.conv3d.weight local_conv3d.conv3d.weight`.

    Args:
        c_in, c_out: widths.
        strips: horizontal strips of the local convolution.
        stack: the published form B: local below global, which doubles the height, instead of their sum (form A).
    """

    def __init__(self, c_in: int, c_out: int, strips: int, *, stack: bool = False) -> None:
        super().__init__()
        self.strips, self.stack = strips, stack
        self.global_conv3d = BasicConv3d(c_in, c_out)
        self.local_conv3d = BasicConv3d(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T, h, w], or [B, c_out, T, 2h, w] where stacked."""
        whole = F.leaky_relu_(self.global_conv3d(x), LEAKY_SLOPE)
        # All strips in one convolution, as items of the batch: [B, c, T, n, h / n, w] and back.
        strips = torch.unflatten(x, 3, (self.strips, -1)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        local = F.leaky_relu_(self.local_conv3d(strips), LEAKY_SLOPE)
        local = torch.unflatten(local, 0, (-1, self.strips)).permute(0, 2, 3, 1, 4, 5)
        if self.stack:
            return torch.cat([whole, local.flatten(3, 4)], dim=3)
        return (torch.unflatten(whole, 3, (self.strips, -1)) + local).flatten(3, 4)


class GeMPooling(nn.Module):
    """Generalised mean of each horizontal strip, (mean of x^p)^(1/p), between mean and maximum. State: `p` [1]."""

    def __init__(self, strips: int, exponent: float = 6.5, least: float = 1e-6) -> None:
        super().__init__()
        self.strips, self.least = strips, least
        self.p = nn.Parameter(torch.full((1,), exponent))

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, h, w] -> [B, s, c]."""
        strips = torch.unflatten(x.clamp(min=self.least), 2, (self.strips, -1)).flatten(3)
        # Powers of shares of the largest value: those of the values themselves leave the range of half precision
        # above 5.5, and below 1e-5 that of single precision, where the gradient of p is no number any more. The
        # result does not depend on what is divided by, so no gradient goes through it.
        largest = strips.amax(dim=-1, keepdim=True).detach()
        mean = (strips / largest).pow(self.p).mean(dim=-1)
        pooled = mean.pow(1.0 / self.p) * largest.squeeze(-1)
        return pooled.transpose(1, 2)


@register_model("gaitgl")
class GaitGL(IntervalModel):
    """Stem, aggregation of three frames, three stages of global-local convolutions, maximum, GeM over strips.

    A map sees three frames and the neighbouring intervals; fewer than three frames are repeated, as published.
    """

    Options: ClassVar[type[ModelOptions]] = GaitGLOptions
    TAGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"channels": (4, 6, 8, 8), "layers": 2, "halving": 2, "dims": 10, "strips": 16},
        "casiab": {},
        "gait3d": {},
        "oumvlp": {"channels": (32, 64, 128, 256), "layers": 2, "halving": 1, "dims": 256},
        "grew": {"channels": (32, 64, 128, 256), "layers": 2, "halving": 1, "dims": 256},
        "grew-bnneck": {"channels": (32, 64, 128, 256), "layers": 2, "halving": 1, "dims": 256, "head": "bnneck"},
    }

    def __init__(self, options: GaitGLOptions) -> None:
        super().__init__(options, strips=options.strips, dims=options.dims)
        (c0, c1, c2, c3), layers, strips = options.channels, options.layers, 2**options.halving
        self.halo = layers + INTERVAL * len(_STAGES) * layers
        stem: list[nn.Module] = []
        for index in range(layers):
            stem += [BasicConv3d(c0 if index else 1, c0), nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        self.conv3d = nn.Sequential(*stem)
        self.LTA = local_aggregation(c0)
        self.GLConvA0 = _stage(c0, c1, layers, strips)
        self.GLConvA1 = _stage(c1, c2, layers, strips)
        self.GLConvB2 = _stage(c2, c3, layers, strips, stack=True)
        self.HPP = GeMPooling(options.strips)
        self.Head0 = SeparateFCs(options.strips, c3, options.dims)
        self._add_end(options)
        initialise(self)

    def _add_end(self, options: GaitGLOptions) -> None:
        """Batch norm and classifier of the head."""
        classes = options.num_classes
        self.Bn: nn.BatchNorm1d | None = None
        self.Head1: SeparateFCs | None = None
        self.BNNecks: SeparateBNNecks | None = None
        if options.head == "shared_bn":
            self.Bn = nn.BatchNorm1d(options.dims)
            if classes is not None:
                self.Head1 = SeparateFCs(options.strips, options.dims, classes)
        elif classes is not None or options.embedding == "bnneck":
            self.BNNecks = SeparateBNNecks(options.strips, options.dims, classes)

    @property
    def neck(self) -> SeparateBNNecks | None:
        """The BN neck of that head, where there is a classifier or the embedding needs it."""
        return self.BNNecks

    def classify(self, features: Tensor) -> Tensor | None:
        """Logits of the training classifier of either head, [B, s, d] -> [B, s, C], None without one."""
        if self.Head1 is None:
            return super().classify(features)
        logits: Tensor = self.Head1(features)
        return logits

    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, 1, T, H, W] -> [B, channels[3], T // 3, H, W // 2]."""
        x = one_channel_last(x)
        for layer in self.conv3d:
            x = layer(blanked(x, packing) if isinstance(layer, BasicConv3d) else x)
        x = self.LTA(x)  # each sequence starts with an interval: none of them sees two sequences
        intervals = None if packing is None else packing.divided(self.stride)
        x = F.max_pool3d(_through(self.GLConvA0, x, intervals), (1, 2, 2))
        x = _through(self.GLConvA1, x, intervals)
        return _through(self.GLConvB2, x, intervals)

    def set_features(self, pooled: Tensor) -> Tensor:
        """The temporal maximum [B, channels[3], H, W // 2] -> [B, s, d]."""
        features: Tensor = self.Head0(self.HPP(pooled))
        return features if self.Bn is None else self.Bn(features.transpose(1, 2)).transpose(1, 2).contiguous()

    @classmethod
    def recognise(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """Everything but size and halving; halving as in the published network of that depth."""
        if not {"LTA.0.conv3d.weight", "HPP.p", "Head0.fc_bin"} <= shapes.keys() or len(shapes["Head0.fc_bin"]) != 3:
            return None
        layers = sum(key.startswith("conv3d.") for key in shapes)
        inner = "" if layers == 1 else ".0"
        widths = ["conv3d.0.conv3d.weight", *(f"{stage}{inner}.global_conv3d.conv3d.weight" for stage in _STAGES)]
        if not set(widths) <= shapes.keys():
            return None
        strips, _, dims = shapes["Head0.fc_bin"]
        head = "shared_bn" if "Bn.weight" in shapes else "bnneck"
        classifier = shapes.get("Head1.fc_bin" if head == "shared_bn" else "BNNecks.fc_bin")
        return {
            "channels": tuple(shapes[key][0] for key in widths),
            "layers": layers,
            "halving": 3 if layers == 1 else 1,
            "dims": dims,
            "strips": strips,
            "head": head,
            "num_classes": classifier[-1] if classifier else None,
        }


def _stage(c_in: int, c_out: int, layers: int, strips: int, *, stack: bool = False) -> GLConv | nn.Sequential:
    """As many global-local convolutions, the last one stacking. A single one stands by itself, so its keys do too."""
    blocks = [
        GLConv(c_out if index else c_in, c_out, strips, stack=stack and index == layers - 1) for index in range(layers)
    ]
    return blocks[0] if layers == 1 else nn.Sequential(*blocks)


def _through(stage: nn.Module, x: Tensor, packing: Packing | None) -> Tensor:
    for block in stage if isinstance(stage, nn.Sequential) else (stage,):
        x = block(blanked(x, packing))
    return x
