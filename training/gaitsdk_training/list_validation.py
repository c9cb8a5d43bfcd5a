"""How good a re-ranker is on the validation lists D_val (CarGait, section 3, "Train Stopping Criteria")."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from gaitsdk_training.lists import ListSet
from gaitsdk_training.losses import ranking_loss

_BATCH = 64  # lists that are measured at once


class ListValidation:
    """Measures a network that gives distances (CarGait, or the classifier) on D_val: the mean of Eq. (1) over all pairs
    of a positive and a negative of a list, then over lists.

    Args:
        data: D_val.
        beta: of Eq. (1).
        k: length of the list that is re-ranked, for Rank-1.
        limit: at most so many lists, drawn with `seed`; None = all.
        seed: see there.
        device: where the network is.
    """

    def __init__(
        self, data: ListSet, *, beta: float, k: int, limit: int | None, seed: int, device: torch.device
    ) -> None:
        lists = data.lists
        chosen = np.arange(len(lists))
        if limit is not None and limit < len(lists):
            chosen = np.sort(np.random.default_rng((seed, 3)).choice(len(lists), limit, replace=False))
        self.features = torch.from_numpy(data.features).to(device)
        self.probes = torch.from_numpy(lists.probes[chosen]).to(device)
        self.candidates = torch.from_numpy(lists.candidates[chosen]).to(device)
        self.positive = torch.from_numpy(lists.positive[chosen]).to(device)
        # A candidate from further away stands outside the shortlist: it counts for the loss, not for Rank-1.
        self.k = torch.full((len(chosen),), min(k, lists.candidates.shape[1]), device=device)
        completed = torch.from_numpy(lists.completed[chosen]).to(device)
        self.k = torch.minimum(self.k, lists.candidates.shape[1] - completed.long())
        self.beta = beta

    def measure(self, model: nn.Module) -> dict[str, float]:
        """`loss` and `rank1` (percent) of the lists after re-ranking."""
        was_training = model.training
        model.eval()
        figures = self._figures(model)
        model.train(was_training)
        return figures

    def of_shortlist(self) -> dict[str, float]:
        """The same before re-ranking: the mean over strips of the Euclidean distance."""
        return self._figures(
            lambda probe, candidates: torch.linalg.vector_norm(probe.unsqueeze(1) - candidates, dim=-1).mean(dim=-1)
        )

    @torch.no_grad()
    def _figures(self, distance: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        losses, hits = [], []
        for start in range(0, len(self.probes), _BATCH):
            part = slice(start, start + _BATCH)
            distances = distance(self.features[self.probes[part]], self.features[self.candidates[part]])
            losses.append(_list_loss(distances, self.positive[part], self.beta))
            beyond = torch.arange(distances.shape[1], device=distances.device)[None] >= self.k[part, None]
            first = distances.masked_fill(beyond, math.inf).argmin(dim=1, keepdim=True)
            hits.append(self.positive[part].gather(1, first)[:, 0])
        return {"loss": float(torch.cat(losses).mean()), "rank1": 100.0 * float(torch.cat(hits).float().mean())}


def _list_loss(distances: Tensor, positive: Tensor, beta: float) -> Tensor:
    """Mean of Eq. (1) over the (positive, negative) pairs of each list: [m, v] -> [m]."""
    pairs = positive[:, :, None] & ~positive[:, None, :]
    wide = distances[:, :, None].expand(pairs.shape)
    terms = ranking_loss(wide, wide.transpose(1, 2), beta, "none")
    return (terms * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))
