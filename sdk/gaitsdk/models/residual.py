"""Residual blocks of DeepGaitV2, and of SwinGait-3D and SkeletonGait++ after it, on maps [B, c, T, h, w]."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.models.blocks import BasicBlock2d, Conv3d, FrameBlock, per_frame
from gaitsdk.models.packing import Packing, blanked


def stem(c_in: int, c_out: int) -> FrameBlock:
    """3x3, BN, ReLU on frames [N, c_in, h, w]. State: `forward_block.0/.1`."""
    convolution = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
    return FrameBlock(nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)))


def stage_2d(c_in: int, c_out: int, blocks: int, stride: int = 1) -> FrameBlock:
    """2-D residual blocks on frames [N, c_in, h, w], the first with the stride. State: `forward_block.<block>.*`."""
    first = BasicBlock2d(c_in, c_out, stride)
    return FrameBlock(nn.Sequential(first, *(BasicBlock2d(c_out, c_out) for _ in range(blocks - 1))))


class TemporalBlock(nn.Module, abc.ABC):
    """A residual block that looks across time; `radius` = how many frames away."""

    radius: ClassVar[int]

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            shortcut = Conv3d(c_in, c_out, 1, stride=(1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(c_out))

    def forward(self, x: Tensor, packing: Packing | None) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T, ceil(h / stride), ceil(w / stride)]."""
        y = self.branch(x, packing)
        return F.relu_(y.add_(x if self.downsample is None else self.downsample(x)))

    @abc.abstractmethod
    def branch(self, x: Tensor, packing: Packing | None) -> Tensor:
        """What is added to the shortcut."""


class BlockP3D(TemporalBlock):
    """Pseudo-3-D: 3x3 (stride), BN, ReLU; plus a (3,1,1) convolution of it, BN, ReLU; 3x3, BN; plus the shortcut, ReLU.

    State: `conv1.forward_block.0/.1 shortcut3d sbn conv2.forward_block.0/.1` and `downsample.0/.1` where width or
    stride change.
    """

    radius = 1

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, stride)
        first = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.conv1 = FrameBlock(nn.Sequential(first, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)))
        second = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.conv2 = FrameBlock(nn.Sequential(second, nn.BatchNorm2d(c_out)))
        self.shortcut3d = Conv3d(c_out, c_out, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.sbn = nn.BatchNorm3d(c_out)

    def branch(self, x: Tensor, packing: Packing | None) -> Tensor:
        y = blanked(per_frame(self.conv1, x), packing)
        y = F.relu_(self.sbn(self.shortcut3d(y)).add_(y))
        return per_frame(self.conv2, y)


class Block3D(TemporalBlock):
    """3x3x3 (stride in space), BN, ReLU, 3x3x3, BN, plus the shortcut, ReLU.

    State: `conv1 bn1 conv2 bn2` and `downsample.0/.1` where width or stride change.
    """

    radius = 2

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(c_in, c_out, stride)
        self.conv1 = Conv3d(c_in, c_out, 3, stride=(1, stride, stride), padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(c_out)
        self.conv2 = Conv3d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(c_out)

    def branch(self, x: Tensor, packing: Packing | None) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(blanked(x, packing))))
        maps: Tensor = self.bn2(self.conv2(blanked(y, packing)))
        return maps


class TemporalStage(nn.ModuleList):
    """Blocks that look across time, the first with the stride. State: `<block>.*`."""

    def __init__(self, block: type[BlockP3D | Block3D], c_in: int, c_out: int, blocks: int, stride: int = 1) -> None:
        super().__init__([block(c_in, c_out, stride), *(block(c_out, c_out) for _ in range(blocks - 1))])
        self.radius = block.radius * blocks

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T, h', w']."""
        for block in self:
            x = block(x, packing)
        return x
