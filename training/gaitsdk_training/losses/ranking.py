"""The ranking loss of CarGait, Eq. (1) of the paper:

L*_i = -log sigmoid(d_neg - d_pos)
L_i  = beta * L*_i  where d_neg >= d_pos (ranked correctly), else L*_i
L    = sum_i L_i
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gaitsdk.errors import InputError, OptionError


def ranking_loss(d_pos: Tensor, d_neg: Tensor, beta: float = 0.1, reduction: str = "sum") -> Tensor:
    """Eq. (1), as softplus(d_pos - d_neg), which does not overflow.

    Args:
        d_pos, d_neg: distances of the probe to a positive and to a negative, same shape (any).
        beta: damping of correctly ranked triplets.
        reduction: "sum" as in the paper, "mean", or "none" for the terms themselves.

    Returns:
        Scalar, or the shape of the inputs for "none".

    Raises:
        InputError: shapes differ. OptionError: unknown reduction.
    """
    if d_pos.shape != d_neg.shape:
        raise InputError(
            "the distances do not belong together",
            where="ranking loss",
            got=f"{tuple(d_pos.shape)} and {tuple(d_neg.shape)}",
            expected="the same shape",
        )
    terms = F.softplus(d_pos - d_neg)
    terms = torch.where(d_neg >= d_pos, beta * terms, terms)
    if reduction == "sum":
        return terms.sum()
    if reduction == "mean":
        return terms.mean()
    if reduction == "none":
        return terms
    raise OptionError("unknown reduction", where="reduction", got=repr(reduction), expected="sum, mean or none")
