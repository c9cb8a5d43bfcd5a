"""The binary classifier that CarGait's paper compares with (section 4.5, Figure 6 and row 3 of Table 5).

    F_pc = flatten(concatenate(F_p, F_c))        [2 s d]
    z    = MLP(F_pc)                             the logit of "both are one person", trained with BCE

No cross-attention: probe and candidate meet for the first time in the hidden layer. At inference the first K candidates
are sorted by descending score. It is a baseline for comparisons, not a re-ranker to use.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.errors import InputError, OptionError
from gaitsdk.models.blocks import is_tracing


class PairClassifier(nn.Module):
    """Says whether two sequences show one person.

    The paper gives neither depth nor width of its MLP: ours has one hidden layer, by default as wide as CarGait.

    The concatenation has an order, so score(a, b) and score(b, a) differ, as in the paper.

    Args:
        dims: d of the backbone's feature map.
        strips: s of it; unlike CarGait, the network is bound to it.
        width: of the hidden layer.

    Raises:
        OptionError: a value is not positive.
    """

    name: ClassVar[str] = "classifier"

    def __init__(self, dims: int = 256, strips: int = 16, width: int = 256) -> None:
        super().__init__()
        for name, value in {"dims": dims, "strips": strips, "width": width}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(
                    f"option '{name}' is impossible", where="PairClassifier", got=repr(value), expected="an int > 0"
                )
        self.dims, self.strips, self.width = dims, strips, width
        self.hidden = nn.Linear(2 * strips * dims, width)
        self.score = nn.Linear(width, 1)

    @property
    def options(self) -> dict[str, Any]:
        """Plain JSON-able values: `PairClassifier(**model.options)` builds the same network."""
        return {"dims": self.dims, "strips": self.strips, "width": self.width}

    def for_inference(self) -> PairClassifier:
        """A copy in eval mode: what a bundle stores and an exporter takes."""
        return copy.deepcopy(self).eval()

    def forward(self, probe: Tensor, candidates: Tensor) -> Tensor:
        """Distances in CarGait's place: -log P(one person) = softplus(-z).

        Sorting by them, ascending, is sorting by the score, descending; unlike 1 - P they do not run together where
        the network is sure.

        Args:
            probe: F_p [B, s, d]. candidates: F_c [B, K, s, d] of each probe's K candidates.

        Returns:
            distances [B, K] >= 0, lower is nearer; each depends on its own pair alone.

        Raises:
            InputError: shapes that do not belong together.
        """
        return F.softplus(-self.logits(probe, candidates))

    def logits(self, probe: Tensor, candidates: Tensor) -> Tensor:
        """Logits z [B, K] of "one person"; arguments and errors as for `forward`."""
        self._check(probe, candidates)
        # The hidden layer of a concatenation is a sum, whose first half is the same for all candidates of a probe.
        half = self.strips * self.dims
        of_probe = F.linear(probe.flatten(1), self.hidden.weight[:, :half], self.hidden.bias)
        of_candidates = F.linear(candidates.flatten(2), self.hidden.weight[:, half:])
        scores: Tensor = self.score(torch.relu(of_probe.unsqueeze(1) + of_candidates))
        return scores.squeeze(-1)

    def _check(self, probe: Tensor, candidates: Tensor) -> None:
        if is_tracing():
            return  # sizes are traced values there
        expected = (
            probe.dim() == 3
            and candidates.dim() == 4
            and probe.shape[0] == candidates.shape[0]
            and probe.shape[1:] == candidates.shape[2:] == (self.strips, self.dims)
        )
        if not expected:
            raise InputError(
                "probe and candidates do not belong together",
                where="PairClassifier",
                got=f"{tuple(probe.shape)} and {tuple(candidates.shape)}",
                expected=f"[B, {self.strips}, {self.dims}] and [B, K, {self.strips}, {self.dims}]",
            )
