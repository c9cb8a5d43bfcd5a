"""Blocks that the architectures share. Features of strips are [B, s, c] throughout (strips before channels)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.01


def is_tracing() -> bool:
    """True inside `torch.jit.trace`, where sizes are traced values that Python must not compare."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def is_exporting() -> bool:
    """True while a graph is made of the network, by tracing or by torch.export: it must not hold choices by size."""
    return is_tracing() or torch.compiler.is_compiling()


class BasicConv2d(nn.Module):
    """A bare 2-D convolution: no bias, no normalisation. State: `conv.weight`."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, h, w] -> [N, c_out, h', w']."""
        y: Tensor = self.conv(x)
        return y


def convolution3d(
    x: Tensor, weight: Tensor, *, stride: tuple[int, int, int] = (1, 1, 1), padding: tuple[int, int, int] = (1, 1, 1)
) -> Tensor:
    """`F.conv3d`; in inference on a CPU always by oneDNN.

    torch leaves small maps of a single sequence to a kernel of its own, which takes up to four times as long.
    """
    onednn = torch.backends.mkldnn
    if (
        not torch.is_grad_enabled()
        and not is_exporting()
        and (x.device.type, x.dtype) == ("cpu", torch.float32)
        and onednn.is_available()  # type: ignore[no-untyped-call]
        and onednn.enabled
    ):
        return torch.mkldnn_convolution(x, weight, None, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, stride=stride, padding=padding)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` without bias that computes as `convolution3d`."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, c_in, T, h, w] -> [B, c_out, T', h', w']."""
        t, h, w = self.stride
        frames, rows, columns = (int(each) for each in self.padding)
        return convolution3d(input, self.weight, stride=(t, h, w), padding=(frames, rows, columns))


class FrameBlock(nn.Module):
    """Layers that see frames one by one, already folded into the batch. State: `forward_block.*`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.forward_block = block

    def forward(self, frames: Tensor) -> Tensor:
        """[N, c, h, w] -> [N, c', h', w']."""
        y: Tensor = self.forward_block(frames)
        return y


def channels_last(x: Tensor) -> Tensor:
    """The same values with channels last in memory, which every convolution after it then keeps.

    Up to 1.6 times as fast on a CPU, and folding frames into the batch copies nothing.

    Args:
        x: [N, c, h, w] or [B, c, T, h, w].
    """
    if is_exporting():
        return x  # a compiler chooses its own layouts
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # One channel: both layouts are the same memory, and only strides tell the convolution which one is meant.
    height, width = x.shape[2:]
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))


def per_frame(block: nn.Module, x: Tensor) -> Tensor:
    """Applies layers that see frames one by one.

    Args:
        block: [N, c, h, w] -> [N, c', h', w'].
        x: [B, c, T, h, w].

    Returns:
        [B, c', T, h', w'].
    """
    batch, _, time = x.shape[:3]
    # Without copies where channels are last: frames [B * T, ...] are a view of [B, c, T, ...] then.
    frames = channels_last(x.transpose(1, 2).flatten(0, 1))
    if torch.is_grad_enabled() or is_exporting():
        maps = block(frames)
    else:
        maps = torch.cat([block(chunk) for chunk in torch.split(frames, frames_per_chunk(block))])
    unfolded: Tensor = maps.unflatten(0, (batch, time)).transpose(1, 2)
    return unfolded


def frames_per_chunk(block: nn.Module) -> int:
    """How many frames pass 2-D layers together in inference.

    So that a long sequence needs no more memory than a short one in the layer with the largest maps, and on a CPU so
    few that their maps stay in the caches (measured: 8 % faster than 30 at once in GaitBase). Narrow networks, whose
    layers cost more to call than to compute, take some more; from 48 on, memory that comes and goes costs the gain.
    """
    weight = next(block.parameters(), None)
    if weight is not None and weight.device.type != "cpu":
        return 512
    return 24 if weight is None or weight.shape[0] < 32 else 16


def maximum_over(x: Tensor, dim: int) -> Tensor:
    """`x.amax(dim)`, read in the order of memory.

    torch reduces maps whose channels are last in memory at a thirtieth of the speed of flat ones.

    Args:
        x: maps in any memory format.
        dim: the dimension of the frames, not negative.

    Returns:
        x without that dimension, in x's memory format.
    """
    if is_exporting():
        return x.amax(dim=dim)
    strides = x.stride()
    others = sorted((each for each in range(x.dim()) if each != dim), key=strides.__getitem__, reverse=True)
    outer = [each for each in others if strides[each] > strides[dim]]
    inner = others[len(outer) :]
    if not inner:
        return x.amax(dim=dim)
    flat = x.permute(*outer, dim, *inner).flatten(len(outer) + 1)
    found = flat.amax(dim=len(outer)).reshape([x.shape[each] for each in others])
    return found.permute([others.index(each) for each in sorted(others)])


class Shortcut2d(nn.Sequential):
    """1x1 convolution (stride) and BN. State: `0.weight 1.*`."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        convolution = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(c_out))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, h, w] -> [N, c_out, ceil(h / stride), ceil(w / stride)]."""
        convolution, norm = self
        if self.stride > 1 and torch.is_grad_enabled() and not is_exporting():
            # The same by hand: the gradient of a strided 1x1 convolution of fewer than 16 channels that are last in
            # memory writes outside its memory on some CPUs (torch 2.13, measured on one with AVX-512).
            maps: Tensor = norm(F.conv2d(x[:, :, :: self.stride, :: self.stride], self.get_parameter("0.weight")))
            return maps
        maps = norm(convolution(x))
        return maps


class BasicBlock2d(nn.Module):
    """Residual block: 3x3 (stride), BN, ReLU, 3x3, BN, plus the shortcut, ReLU.

    The shortcut is a 1x1 convolution and BN where stride or width changes, else the identity.
    State: `conv1 bn1 conv2 bn2` and, where there is one, `downsample.0/.1`.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = Shortcut2d(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, h, w] -> [N, c_out, ceil(h / stride), ceil(w / stride)]."""
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)).add_(identity)
        return F.relu_(y)


def horizontal_pyramid_pooling(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Horizontal pyramid pooling: mean + max over each horizontal strip.

    Args:
        x: maps [B, c, h, w]; every number in `bins` divides h.
        bins: how many strips each level of the pyramid has, in the order of the output.

    Returns:
        [B, s, c], s = sum(bins).
    """
    batch, channels, height, width = x.shape
    levels = []
    for count in bins:
        strips = x.reshape(batch, channels, count, height // count * width)
        levels.append(strips.mean(dim=-1) + strips.amax(dim=-1))
    return torch.cat(levels, dim=-1).transpose(1, 2)


class SeparateFCs(nn.Module):
    """One linear map without bias per strip. State: `fc_bin` [s, c_in, c_out]."""

    def __init__(self, strips: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.fc_bin = nn.Parameter(torch.empty(strips, c_in, c_out))
        # On the whole tensor, as the published recipes are tuned for: smaller than Xavier strip by strip.
        nn.init.xavier_uniform_(self.fc_bin)

    def forward(self, x: Tensor) -> Tensor:
        """[B, s, c_in] -> [B, s, c_out], contiguous."""
        return torch.matmul(x.transpose(0, 1), self.fc_bin).transpose(0, 1).contiguous()


class SeparateBNNecks(nn.Module):
    """BN neck: batch norm over all dims of all strips, then L2 per strip, then a cosine classifier per strip.

    State: `bn1d.*` over d*s features (index = dim * s + strip), and `fc_bin` [s, d, C] unless `num_classes` is None.
    """

    def __init__(self, strips: int, dims: int, num_classes: int | None) -> None:
        super().__init__()
        self.strips, self.dims, self.num_classes = strips, dims, num_classes
        self.fc_bin: nn.Parameter | None = None
        if num_classes is not None:
            self.fc_bin = nn.Parameter(nn.init.xavier_uniform_(torch.empty(strips, dims, num_classes)))
        self.bn1d = nn.BatchNorm1d(dims * strips)

    def normalise(self, features: Tensor) -> Tensor:
        """[B, s, d] -> [B, s, d] with unit norm in each strip, contiguous."""
        flat = features.transpose(1, 2).reshape(-1, self.dims * self.strips)
        y = self.bn1d(flat).reshape(-1, self.dims, self.strips).transpose(1, 2)
        return F.normalize(y, dim=-1).contiguous()

    def logits(self, normalised: Tensor) -> Tensor:
        """[B, s, d] from `normalise` -> cosines [B, s, C], before any temperature."""
        if self.fc_bin is None:
            return normalised.new_zeros((*normalised.shape[:2], 0))
        return torch.matmul(normalised.transpose(0, 1), F.normalize(self.fc_bin, dim=1)).transpose(0, 1).contiguous()


def initialise(model: nn.Module) -> None:
    """Start values of the published recipes: Xavier for convolutions and linear maps, N(1, 0.02) for BN scales."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
