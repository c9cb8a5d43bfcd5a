"""Dynamic reweighting progressive learning, the triplet part of GaitMPL (Eq. 2 to 7), strip by strip:

    L_BH   = over anchors a of  [margin + pull_a - push_a]_+                                                       (5)
    L_BA   = over a, positives p, negatives n of  [margin + d(a, p) - d(a, n)]_+                                   (6)
    L_DRPL = L_BA + s_t L_BH                                                                                       (7)

pull_a and push_a are what the hardness weights W (`hardness`, Eq. 2) make of the distances to the positives and to the
negatives, D' = W D (Eq. 4). Easy and hard sequences count alike at first; delta_t (`schedules`, Eq. 3) falls and moves
the weight to the hard ones, while s_t lets L_BH in. Where the paper prints one thing and says, or needs, another, the
reading is an option; docs/gaitmpl.md has the figures behind the defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gaitsdk.errors import OptionError
from gaitsdk_training.losses.hardness import WEIGHTS, hardness_weights
from gaitsdk_training.losses.schedules import FUSIONS, PROGRESS, delta_at, smoothness_at
from gaitsdk_training.losses.triplet_hard import REDUCTIONS, hardest_terms, has_negative, reduce_terms, strip_distances

_CHOICES = {
    "weights": WEIGHTS,
    "progress": PROGRESS,
    "mean": ("printed", "weights"),
    "reduction": REDUCTIONS,
    "own_pair": ("printed", "counted"),
    "weight_gradient": ("through", "detached"),
    "batch_hard": ("reweighted", "vanilla", "none"),
    "smoothness": FUSIONS,
}


class DRPL(nn.Module):
    """L_DRPL. It has no state; time enters as `step`.

    Args:
        total_steps: T.
        delta_min, epsilon: of delta_t, Eq. 3.
        margin: m, in units of the distance.
        weights: reading of Eq. 2, or another row of Table V: `hardness.WEIGHTS`.
        threshold: of "thresholding", see `hardness_weights`.
        progress: reading of Eq. 3, "printed" or "to_minimum", see `delta_at`.
        mean: "weights": pull and push are the weighted sums, and means, since the weights sum to 1; "printed" divides
            them once more, by the number of positives (negatives). The pull then outweighs the push, and L_BH alone
            shrinks all features to 0.
        reduction: of the terms of a strip, in both Eq. 5 and 6: "sum" as printed, "mean", or "nonzero_mean" as the gait
            field does. The strips are averaged.
        own_pair: "printed": in Eq. 6 a sequence is no positive of itself (p != a); "counted": it is, at distance 0, as
            in `triplet_batch_all`; None = counted with "nonzero_mean", which is that loss, else as printed. In Eq. 5,
            which does not exclude it, it always is.
        weight_gradient: "through" differentiates W too, as the equations stand; "detached" takes it as given.
        batch_all: False leaves L_BA out (Table VI, rows 1 and 2).
        batch_hard: "reweighted" is Eq. 5; "vanilla" the hardest pair alone (Table VI, rows 1, 3, 5); "none" is without.
        smoothness: kind of s_t, see `fusion_at`; "equal" is without smoothness factor (Table VI, rows 3 and 4).

    Raises:
        OptionError: an unknown value, total_steps or delta_min not positive, or nothing left of the loss.
    """

    def __init__(
        self,
        total_steps: float,
        delta_min: float = 0.1,
        epsilon: float = 1.4,
        margin: float = 0.2,
        *,
        weights: str = "exponential-of-exponential",
        threshold: float | None = None,
        progress: str = "printed",
        mean: str = "weights",
        reduction: str = "nonzero_mean",
        own_pair: str | None = None,
        weight_gradient: str = "through",
        batch_all: bool = True,
        batch_hard: str = "reweighted",
        smoothness: str = "sine",
    ) -> None:
        super().__init__()
        self.total_steps, self.delta_min, self.epsilon, self.margin = total_steps, delta_min, epsilon, margin
        self.weights, self.threshold, self.progress, self.mean = weights, threshold, progress, mean
        self.reduction, self.weight_gradient = reduction, weight_gradient
        self.own_pair = own_pair or ("counted" if reduction == "nonzero_mean" else "printed")
        self.batch_all, self.batch_hard, self.smoothness = batch_all, batch_hard, smoothness
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(
                    "unknown value", where=f"DRPL.{name}", got=repr(getattr(self, name)), expected=", ".join(choices)
                )
        if not batch_all and batch_hard == "none":
            raise OptionError("nothing is left of the loss", where="DRPL", got="batch_all=False, batch_hard='none'")
        delta_at(0, total_steps, delta_min, epsilon, progress)  # refuses what would fail at the first step

    def forward(self, features: Tensor, labels: Tensor, step: float) -> Tensor:
        """The loss.

        Args:
            features: F [n, s, d] floating; half precision is computed in float32.
            labels: [n] integer; any number of sequences per identity.
            step: t, 0..total_steps; held at the end beyond it.

        Returns:
            Scalar >= 0. An anchor without negative has no term, so a batch of a single identity gives 0 with gradient
            0; an identity with one sequence has itself as only positive, at distance 0.

        Raises:
            InputError: shapes that do not belong together. OptionError: step negative.
        """
        return self.detailed(features, labels, step)[0]

    def detailed(self, features: Tensor, labels: Tensor, step: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and, without gradient, what is worth logging: batch_all, batch_hard, smoothness, delta (scalars)."""
        distances, same = strip_distances(features, labels)
        delta = delta_at(step, self.total_steps, self.delta_min, self.epsilon, self.progress)
        smoothness = smoothness_at(step, self.total_steps, self.smoothness)
        loss = distances.new_zeros(())
        terms = {"smoothness": distances.new_tensor(smoothness), "delta": distances.new_tensor(delta)}
        if self.batch_all:
            terms["batch_all"] = self._batch_all(distances, same)
            loss = loss + terms["batch_all"]
        if self.batch_hard != "none":
            hinges = (
                hardest_terms(distances, same, self.margin)
                if self.batch_hard == "vanilla"
                else self._reweighted_terms(distances, same, delta)
            )
            terms["batch_hard"] = reduce_terms(hinges, has_negative(same), self.reduction)
            loss = loss + smoothness * terms["batch_hard"]
        return loss, {name: value.detach() for name, value in terms.items()}

    def _batch_all(self, distances: Tensor, same: Tensor) -> Tensor:
        """Eq. 6."""
        own = torch.eye(len(same), dtype=torch.bool, device=same.device)
        anchors, positives = (same if self.own_pair == "counted" else same & ~own).nonzero(as_tuple=True)
        to_positive = distances[:, anchors, positives].unsqueeze(-1)
        negatives = ~same[anchors]  # [pairs, n]
        terms = torch.relu(self.margin + to_positive - distances.index_select(1, anchors)) * negatives
        return reduce_terms(terms, negatives, self.reduction)

    def _reweighted_terms(self, distances: Tensor, same: Tensor, delta: float) -> Tensor:
        """Hinge terms [s, n] of Eq. 5."""
        if self.weight_gradient == "detached":
            weights = hardness_weights(distances.detach(), same, delta, self.weights, self.threshold)
        else:
            weights = hardness_weights(distances, same, delta, self.weights, self.threshold)
        # sum of W d, written about the largest d: the slope of W can be so steep that the rounding of d would show.
        largest = (distances.detach() * same).amax(dim=-1, keepdim=True)
        pull = (weights * (distances - largest) * same).sum(dim=-1) + largest.squeeze(-1)
        push = (weights * distances * ~same).sum(dim=-1)
        if self.mean == "printed":
            pull, push = pull / same.sum(dim=1), push / (~same).sum(dim=1).clamp_min(1)
        return torch.relu(self.margin + pull - push) * has_negative(same)
