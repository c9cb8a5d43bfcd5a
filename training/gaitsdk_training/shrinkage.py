"""How much of what CarGait learned is used: a share t of the attention's part, chosen on validation lists.

E = F + t O W_o: with t = 0 the shortlist's order stays, with t = 1 it is the trained network. A network that was
trained on few people follows them too far, and a share orders the lists of strangers better than the whole
(`docs/results.md` has figures). The share goes into W_o: the network stays as the paper prints it, and as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from gaitsdk.errors import OptionError
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.list_validation import ListValidation

SHARES = tuple(tenths / 10 for tenths in range(1, 11))


@dataclass(frozen=True)
class Shrunk:
    """CarGait with a share of its attention.

    Attributes:
        model: in eval mode, without classifier, the share multiplied into W_o.
        share: t.
        rank1: of the validation lists in percent (mean over the kinds of lists), by share; 0.0 = the shortlist's.
    """

    model: CarGait
    share: float
    rank1: dict[float, float]


def shrunk(model: CarGait, validations: Sequence[ListValidation], shares: Sequence[float] = SHARES) -> Shrunk:
    """The share with the highest mean Rank-1 on the validation lists; of equals the largest.

    Args:
        model: a trained CarGait, which is not changed.
        validations: lists of identities that it was not trained on, on the model's device. Several kinds of lists count
            alike: the best share is smaller where a list has several positives than where it has one.
        shares: to choose from, each above 0 and at most 1.

    Raises:
        OptionError: no lists, no share, or one that is none.
    """
    if not validations:
        raise OptionError("no validation lists", where="validations", expected="at least one kind")
    if not shares or not all(0.0 < each <= 1.0 for each in shares):
        raise OptionError("not shares", where="shares", got=list(shares), expected="numbers above 0 and at most 1")
    copy = model.for_inference()
    whole = copy.output.weight.detach().clone()
    rank1 = {0.0: fmean(each.of_shortlist()["rank1"] for each in validations)}
    for share in sorted(shares):
        _scale(copy, whole, share)
        rank1[share] = fmean(each.measure(copy)["rank1"] for each in validations)
    best = max(sorted(shares, reverse=True), key=rank1.__getitem__)
    _scale(copy, whole, best)
    return Shrunk(copy, best, rank1)


@torch.no_grad()
def _scale(model: CarGait, whole: torch.Tensor, share: float) -> None:
    model.output.weight.copy_(whole * share)
