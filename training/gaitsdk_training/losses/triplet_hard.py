"""Batch-hard triplet loss, strip by strip (Hermans et al., 2017, Eq. 5): "vanilla BH" in Table VI of GaitMPL.

For strip s, every sequence of the batch is an anchor a once, with its farthest positive and its nearest negative:

    L_s = over a of  [margin + max_p d_s(a, p) - min_n d_s(a, n)]_+

and the loss is the mean of L_s over strips. As in `triplet`, the anchor counts among its positives, at distance 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaitsdk.errors import InputError, OptionError

#: How the terms of one strip become its loss.
REDUCTIONS = ("nonzero_mean", "mean", "sum")


def triplet_batch_hard(
    features: Tensor, labels: Tensor, margin: float = 0.2, reduction: str = "nonzero_mean"
) -> Tensor:
    """The loss; any number of sequences per identity.

    Args:
        features: F [n, s, d] floating; half precision is computed in float32.
        labels: [n] integer.
        margin: in units of the distance.
        reduction: of a strip's terms, "nonzero_mean", "mean" or "sum" (see `reduce_terms`).

    Returns:
        Scalar >= 0; 0 with gradient 0 where the batch has a single identity.

    Raises:
        InputError: shapes that do not belong together. OptionError: unknown reduction.
    """
    distances, same = strip_distances(features, labels)
    return reduce_terms(hardest_terms(distances, same, margin), has_negative(same), reduction)


def strip_distances(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What every triplet loss of a batch starts from, computed once.

    Args:
        features: F [n, s, d] floating; half precision becomes float32 first.
        labels: [n] integer.

    Returns:
        Euclidean distances [s, n, n], 0 with gradient 0 where two sequences coincide, and bool [n, n]: same identity.

    Raises:
        InputError: shapes that do not belong together.
    """
    if features.dim() != 3 or labels.shape != features.shape[:1] or not features.is_floating_point():
        raise InputError(
            "features and labels do not belong together",
            where="triplet loss",
            got=f"{features.dtype} {tuple(features.shape)} and {tuple(labels.shape)}",
            expected="floating [n, s, d] and [n]",
        )
    strips = features.transpose(0, 1)
    strips = strips.float() if strips.dtype in (torch.float16, torch.bfloat16) else strips
    # The direct form: nothing cancels, a sequence has distance exactly 0 to itself, and the gradient there is 0.
    distances = torch.cdist(strips, strips, compute_mode="donot_use_mm_for_euclid_dist")
    return distances, labels[:, None] == labels[None]


def has_negative(same: Tensor) -> Tensor:
    """[n] bool: anchors that have a negative; the others have no term."""
    return ~same.all(dim=1)


def hardest_terms(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    """Hinge terms [s, n] of distances [s, n, n]; 0 for an anchor without negative."""
    farthest = distances.masked_fill(~same, -torch.inf).amax(dim=-1)
    # An anchor without negative has its nearest one infinitely far away.
    nearest = distances.masked_fill(same, torch.inf).amin(dim=-1)
    return torch.relu(margin + farthest - nearest)


def reduce_terms(terms: Tensor, possible: Tensor, reduction: str) -> Tensor:
    """Scalar: the mean over strips of each strip's sum, mean, or mean over its terms > 0.

    Args:
        terms: [s, ...] >= 0, 0 where no term is possible.
        possible: bool, broadcastable to [...]: what "mean" divides by.
        reduction: "sum" as GaitMPL prints it; "mean"; "nonzero_mean" as the gait field trains (0 where no term is > 0).

    Raises:
        OptionError: unknown reduction.
    """
    sums = terms.flatten(1).sum(dim=1)
    if reduction == "sum":
        return sums.mean()
    if reduction == "mean":
        return (sums / possible.expand(terms.shape[1:]).sum().clamp_min(1)).mean()
    if reduction == "nonzero_mean":
        return (sums / (terms.detach() > 0).flatten(1).sum(dim=1).clamp_min(1)).mean()
    raise OptionError("unknown reduction", where="reduction", got=repr(reduction), expected=", ".join(REDUCTIONS))
