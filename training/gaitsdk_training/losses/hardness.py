"""Hardness attention of GaitMPL: how much each sequence of a batch counts for an anchor (Eq. 2, Table V).

For an anchor, the positives share a weight of 1 and the negatives another:

    W = softmax over the positives of exp(+d / delta),   softmax over the negatives of exp(-d / delta)

That is Eq. 2 as printed, "exponential-of-exponential". Its inner exponential overflows float32 from d = 89 delta on,
so the softmax takes it less its largest value, exp(a_max) * (exp(a - a_max) - 1) with a = d / delta, where exp(a_max)
may be held at exp(60): beyond, every a that differs from a_max at all, in float32 or float64, has weight 0 either way.

On negatives the inner exponential lies between 0 and 1, so that no weight is more than e times another, and a smaller
delta makes them more alike, against Figure 4. "softmax", of +-d / delta itself, sharpens on both sides as delta falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaitsdk.errors import InputError, OptionError

#: Readings of Eq. 2, then the other rows of Table V.
WEIGHTS = ("exponential-of-exponential", "softmax", "thresholding", "polynomial", "exponential")

#: Where exp(a_max) stops: large enough that one rounding step of a at 60 is a difference of more than 1e11.
_LARGEST_EXPONENT = 60.0


def hardness_weights(
    distances: Tensor,
    is_positive: Tensor,
    delta: float,
    kind: str = "exponential-of-exponential",
    threshold: float | None = None,
) -> Tensor:
    """W of Eq. 2: one row per anchor.

    Args:
        distances: [..., n, m] floating, >= 0. Half precision is computed in float32.
        is_positive: bool, broadcastable to `distances`; what is no positive is a negative.
        delta: delta_t, positive; "exponential" and "thresholding" do not use it.
        kind: with h = d for positives and -d for negatives: "exponential-of-exponential" softmax(exp(h / delta));
            "softmax" softmax(h / delta); "exponential" the first with delta = 1; "polynomial" softmax(+-d^delta);
            "thresholding" softmax(h) of those that are hard enough, 0 for the others.
        threshold: for "thresholding", the distance below which a positive, and above which a negative, is too easy;
            None = the mean distance of the row's positives (negatives). The hardest always stays.

    Returns:
        [..., n, m]: in each row the positives sum to 1 and the negatives sum to 1, where there are any. Gradients are
        finite.

    Raises:
        InputError: shapes that do not belong together. OptionError: unknown kind, or delta not positive.
    """
    if kind not in WEIGHTS:
        raise OptionError("unknown weights", where="kind", got=repr(kind), expected=", ".join(WEIGHTS))
    if not delta > 0.0:
        raise OptionError("must be positive", where="delta", got=delta)
    sizes = zip(reversed(is_positive.shape), reversed(distances.shape), strict=False)
    fits = is_positive.dim() <= distances.dim() and all(size in (1, full) for size, full in sizes)
    if distances.dim() < 2 or is_positive.dtype != torch.bool or not fits:
        raise InputError(
            "not distances and which of them are positives",
            where="hardness_weights",
            got=f"{tuple(distances.shape)} and {is_positive.dtype} {tuple(is_positive.shape)}",
            expected="[..., n, m] and bool [..., n, m]",
        )
    d = distances.float() if distances.dtype in (torch.float16, torch.bfloat16) else distances
    if kind == "exponential-of-exponential":
        positives, negatives = _exponentials(d / delta, is_positive), torch.exp(-d / delta)
    elif kind == "exponential":
        positives, negatives = _exponentials(d, is_positive), torch.exp(-d)
    elif kind == "softmax":
        positives, negatives = d / delta, -d / delta
    elif kind == "polynomial":
        powers = d.clamp_min(1e-12) ** delta  # the slope of d^delta at 0 is infinite for delta < 1
        positives, negatives = powers, -powers
    else:
        return _softmax(d, is_positive & _hard(d, is_positive, threshold)) + _softmax(
            -d, ~is_positive & _hard(-d, ~is_positive, None if threshold is None else -threshold)
        )
    return _softmax(positives, is_positive) + _softmax(negatives, ~is_positive)


def _exponentials(a: Tensor, among: Tensor) -> Tensor:
    """exp(a), less its largest value in the row, which changes no softmax."""
    largest = _largest(a, among)
    # Where nothing is masked yet a may exceed the largest; held there, since the softmax leaves those out.
    return torch.exp(largest.clamp_max(_LARGEST_EXPONENT)) * torch.expm1((a - largest).clamp_max(0.0))


def _hard(hardness: Tensor, among: Tensor, threshold: float | None) -> Tensor:
    """Which of a row are at least as hard as the threshold, or the hardest."""
    if threshold is None:
        count = among.sum(dim=-1, keepdim=True).clamp_min(1)
        level = (hardness.detach() * among).sum(dim=-1, keepdim=True) / count
    else:
        level = torch.full_like(hardness[..., :1], threshold)
    return hardness.detach() >= torch.minimum(level, _largest(hardness, among))


def _largest(values: Tensor, among: Tensor) -> Tensor:
    """[..., n, 1], without gradient; a row that has none gives the smallest number of the dtype."""
    smallest = torch.finfo(values.dtype).min
    return values.detach().masked_fill(~among, smallest).amax(dim=-1, keepdim=True)


def _softmax(logits: Tensor, among: Tensor) -> Tensor:
    """Over the chosen entries of each row, 0 elsewhere, and all 0 in a row that has none."""
    filled = logits.masked_fill(~among, torch.finfo(logits.dtype).min)
    return torch.softmax(filled, dim=-1) * among
