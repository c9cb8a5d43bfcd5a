"""The total loss of GaitMPL: its parts, their switches, its checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from gaitsdk.errors import OptionError, TrainingError
from gaitsdk_training.losses import DRPL, GSAM, GaitMPLLoss, triplet_batch_all

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(seed))


def memory() -> GSAM:
    gsam = GSAM(3, 3, 4)
    gsam.initialise([(features(9), LABELS)])
    return gsam


def test_total_is_equation_11_with_every_part() -> None:
    total = GaitMPLLoss(100, drpl=DRPL(100), gsam=memory())
    loss, terms = total(features(), LABELS, 25)
    expected = DRPL(100)(features(), LABELS, 25) + math.sin(math.pi / 8) * memory()(features(), LABELS)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(terms["fusion"]) == pytest.approx(math.sin(math.pi / 8))
    assert float(terms["triplet"] + terms["fusion"] * terms["gsam"]) == pytest.approx(float(loss), rel=1e-6)
    assert {"drpl/batch_all", "drpl/batch_hard", "drpl/delta", "gsam/cross_entropy", "gsam/variance"} <= terms.keys()
    assert all(value.dim() == 0 and not value.requires_grad for value in terms.values())


def test_parts_can_be_left_out() -> None:
    plain, terms = GaitMPLLoss(100, margin=0.5)(features(), LABELS, 25)
    assert float(plain) == float(triplet_batch_all(features(), LABELS, 0.5)) and list(terms) == ["triplet"]
    half, _ = GaitMPLLoss(100, margin=0.5)(features().bfloat16(), LABELS, 25)
    assert half.dtype == torch.float32 and float(half) == pytest.approx(float(plain), rel=0.02)
    alone, _ = GaitMPLLoss(100, drpl=DRPL(100))(features(), LABELS, 25)
    assert float(alone) == float(DRPL(100)(features(), LABELS, 25))
    with_memory, _ = GaitMPLLoss(100, gsam=memory(), fusion="equal")(features(), LABELS, 25)
    expected = triplet_batch_all(features(), LABELS) + memory()(features(), LABELS)
    assert float(with_memory) == pytest.approx(float(expected), rel=1e-6)


def test_state_dict_is_the_memory_and_goes_on_from_there() -> None:
    total = GaitMPLLoss(10, drpl=DRPL(10), gsam=memory())
    total(features(1), LABELS, 1)
    other = GaitMPLLoss(10, drpl=DRPL(10), gsam=GSAM(3, 3, 4))
    with pytest.raises(TrainingError):
        other(features(2), LABELS, 2)
    other.load_state_dict(total.state_dict())
    assert set(total.state_dict()) == {"gsam.memory", "gsam.initialised", "gsam.updates"}
    assert torch.equal(other(features(2), LABELS, 2)[0], total(features(2), LABELS, 2)[0])


def test_a_few_steps_pull_identities_together_and_apart() -> None:
    """From noise: every part trains, and the same person ends nearer than the others."""
    x = features(3).requires_grad_()
    total = GaitMPLLoss(60, drpl=DRPL(60), gsam=memory())
    optimiser = torch.optim.Adam([x], 0.05)
    first = None
    for step in range(60):
        optimiser.zero_grad()
        loss, _ = total(x, LABELS, step)
        loss.backward()
        optimiser.step()
        first = float(loss.detach()) if first is None else first
    distances = torch.cdist(x.detach().transpose(0, 1), x.detach().transpose(0, 1)).mean(0)
    same = LABELS[:, None] == LABELS[None]
    assert first is not None and math.isfinite(first)
    assert distances[same & ~torch.eye(6, dtype=torch.bool)].max() < distances[~same].min()


def test_parts_must_agree() -> None:
    with pytest.raises(OptionError, match="disagree"):
        GaitMPLLoss(100, drpl=DRPL(90))
    with pytest.raises(OptionError, match="sine"):
        GaitMPLLoss(100, fusion="cosine")
    with pytest.raises(OptionError):
        GaitMPLLoss(0)
