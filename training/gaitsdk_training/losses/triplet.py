"""Batch-all triplet loss, strip by strip (Hermans et al., "In Defense of the Triplet Loss", 2017, Eq. 6).

For strip s and every triplet of the batch (anchor a, positive p of the same identity, negative n of another one):

    L_s = sum_{a,p,n} [margin + d_s(a, p) - d_s(a, n)]_+  /  (number of terms > 0, plus 1e-9)

and the loss is the mean of L_s over strips, with d_s the Euclidean distance of strip s. As in the gait field, terms
that are zero already do not dilute the mean, and the anchor counts among its own positives, at distance 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gaitsdk.errors import InputError

#: Added to the number of non-zero terms, so that a strip with none gives 0.
_EPSILON = 1e-9


@dataclass(frozen=True)
class TripletInfo:
    """What is worth logging beside the loss; none of it carries a gradient.

    Attributes:
        per_strip: [s] L_s.
        active: [s] number of terms > 0.
        active_share: share of all terms that are > 0, over all strips.
        mean_distance: [s] mean distance over all pairs of the batch, the anchor with itself included.
    """

    per_strip: Tensor
    active: Tensor
    active_share: float
    mean_distance: Tensor


def triplet_batch_all(features: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    """The loss; any number of sequences per identity.

    Args:
        features: F [n, s, d] floating.
        labels: [n] integer.
        margin: in units of the distance.

    Returns:
        Scalar >= 0; 0 with finite gradients where the batch has a single identity. The gradient of a distance 0 is 0.

    Raises:
        InputError: shapes that do not belong together.
    """
    terms, _, _ = _terms(features, labels, margin)
    return _strip_means(terms).mean()


def triplet_info(features: Tensor, labels: Tensor, margin: float = 0.2) -> tuple[Tensor, TripletInfo]:
    """The loss together with figures for logging.

    Args:
        features, labels, margin: as for `triplet_batch_all`.

    Returns:
        The same scalar as `triplet_batch_all`, and the figures.
    """
    terms, distances, possible = _terms(features, labels, margin)
    per_strip = _strip_means(terms)
    active = (terms.detach() > 0).sum(dim=(1, 2))
    share = float(active.sum()) / max(1, possible * features.shape[1])
    return per_strip.mean(), TripletInfo(per_strip.detach(), active, share, distances.detach().mean(dim=(1, 2)))


def _terms(features: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor, int]:
    """Hinge terms [s, pairs, n] (0 where n is no negative), distances [s, n, n], number of triplets per strip."""
    if features.dim() != 3 or labels.shape != features.shape[:1]:
        raise InputError(
            "features and labels do not belong together",
            where="triplet loss",
            got=f"{tuple(features.shape)} and {tuple(labels.shape)}",
            expected="[n, s, d] and [n]",
        )
    strips = features.transpose(0, 1).float() if features.dtype == torch.float16 else features.transpose(0, 1)
    # The direct form: nothing cancels, a sequence has distance exactly 0 to itself, and the gradient there is 0.
    distances = torch.cdist(strips, strips, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None]
    anchors, positives = same.nonzero(as_tuple=True)
    negatives = ~same[anchors]  # [pairs, n]
    to_positive = distances[:, anchors, positives]
    terms = torch.relu(margin + to_positive.unsqueeze(-1) - distances.index_select(1, anchors))
    return terms * negatives, distances, int(negatives.sum())


def _strip_means(terms: Tensor) -> Tensor:
    return terms.sum(dim=(1, 2)) / ((terms.detach() > 0).sum(dim=(1, 2)) + _EPSILON)
