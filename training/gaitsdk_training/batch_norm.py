"""Batch norm whose mean and variance are those of several processes' rows together, on a CPU.

`torch.nn.SyncBatchNorm` does this on GPUs only. With m rows-and-positions per channel over all processes,
u = (x - mean) / sqrt(variance + eps) and y = w u + b (Ioffe and Szegedy, 2015):

    dL/dx = w / sqrt(variance + eps) * (dL/dy - mean(dL/dy) - u mean(u dL/dy))

so forward and backward need two sums each over the processes, the backward's in one message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

#: Sums a tensor over the processes in place, and gives it.
Sum = Callable[[Tensor], Tensor]


class SynchronisedBatchNorm(_BatchNorm):
    """In training mode as BatchNorm1d, 2d and 3d on the joined rows of `world` processes that have equally many; in
    eval mode as those. Its state dict is theirs."""

    total: Sum
    world: int

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, ...] floating -> the same shape."""
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        y, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps, self.total, self.world)  # type: ignore[no-untyped-call]
        if self.training and self.running_mean is not None:
            self._follow(mean, variance, self.world * x.numel() // x.shape[1])
        normalised: Tensor = y
        return normalised

    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics; the variance there is that of a sample."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var.dtype), factor)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of positions will do."""


def convert(model: nn.Module, total: Sum, world: int) -> None:
    """Replaces the model's batch norms, which keep their parameters, statistics and names."""
    made: dict[_BatchNorm, SynchronisedBatchNorm] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
                if child not in made:
                    made[child] = _like(child, total, world)
                setattr(parent, name, made[child])


def _like(norm: _BatchNorm, total: Sum, world: int) -> SynchronisedBatchNorm:
    tracks = norm.track_running_stats
    other = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, tracks)
    other.total, other.world = total, world
    other.weight, other.bias = norm.weight, norm.bias
    other.running_mean, other.running_var = norm.running_mean, norm.running_var
    other.num_batches_tracked = norm.num_batches_tracked
    return other.train(norm.training)


class _Normalise(torch.autograd.Function):
    """Gives y, and without gradient the mean and the (biased) variance of all processes, float32 at least."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, total: Sum, world: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float() if x.element_size() < 4 else x
        axes, shape = _axes(x)
        count = world * x.numel() // x.shape[1]
        mean = total(wide.sum(dim=axes)) / count
        # Two passes: sums of squares would cancel where the mean is large.
        variance = total((wide - mean.view(shape)).square().sum(dim=axes)) / count
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps))
        ctx.total, ctx.count, ctx.with_bias = total, count, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        axes, shape = _axes(x)
        wide = gradient.to(mean.dtype)
        units = (x.to(mean.dtype) - mean.view(shape)) * inverse.view(shape)
        plain, scaled = wide.sum(dim=axes), (wide * units).sum(dim=axes)
        means = ctx.total(torch.stack([plain, scaled])) / ctx.count
        factor = inverse if weight is None else inverse * weight
        change = wide - means[0].view(shape) - units * means[1].view(shape)
        to_x = (change * factor.view(shape)).to(x.dtype)
        return to_x, None if weight is None else scaled, plain if ctx.with_bias else None, None, None, None


def _axes(x: Tensor) -> tuple[list[int], tuple[int, ...]]:
    """All dimensions but the channels', and the shape that broadcasts one value per channel."""
    return [0, *range(2, x.dim())], (1, -1, *(1 for _ in range(x.dim() - 2)))
