"""Losses: against brute force in float64, against the reference values, and their gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.losses import cross_entropy, ranking_loss, triplet_batch_all, triplet_info


def brute_triplet(features: np.ndarray, labels: np.ndarray, margin: float) -> float:
    """Eq. as printed, one triplet at a time, float64."""
    means = []
    for strip in range(features.shape[1]):
        x = features[:, strip].astype(np.float64)
        terms = []
        for a in range(len(x)):
            for p in range(len(x)):
                for n in range(len(x)):
                    if labels[a] == labels[p] and labels[a] != labels[n]:
                        terms.append(margin + np.linalg.norm(x[a] - x[p]) - np.linalg.norm(x[a] - x[n]))
        active = [term for term in terms if term > 0]
        means.append(sum(active) / (len(active) + 1e-9))
    return float(np.mean(means))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Unequal numbers per identity, one of them alone.
    return torch.randn(9, 3, 5, generator=generator, dtype=torch.float64) * 0.1, torch.tensor(
        [0, 0, 0, 0, 1, 1, 2, 2, 3]
    )


def test_triplet_equals_brute_force_for_any_number_per_identity(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    for margin in (0.05, 0.2, 1.0):
        expected = brute_triplet(features.numpy(), labels.numpy(), margin)
        assert float(triplet_batch_all(features, labels, margin)) == pytest.approx(expected, rel=1e-7)
    assert float(triplet_batch_all(features.float(), labels)) == pytest.approx(
        brute_triplet(features.numpy(), labels.numpy(), 0.2), rel=1e-5
    )


def test_triplet_gradient_equals_finite_differences(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    # Away from coinciding features and from the hinge's corner the loss is smooth.
    assert torch.autograd.gradcheck(
        lambda x: triplet_batch_all(x, labels, 1.0), (features.requires_grad_(),), atol=1e-6
    )


def test_triplet_falls_when_identities_move_apart(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    apart = features + labels[:, None, None].double()
    assert float(triplet_batch_all(apart, labels)) < float(triplet_batch_all(features, labels))
    assert float(triplet_batch_all(features * 0.01 + labels[:, None, None].double() * 10, labels)) == 0.0


def test_triplet_gradients_are_finite_where_sequences_coincide() -> None:
    features = torch.zeros(6, 2, 4, requires_grad=True)
    loss = triplet_batch_all(features, torch.tensor([0, 0, 0, 1, 1, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(0.2)
    assert features.grad is not None and torch.isfinite(features.grad).all()


def test_triplet_of_one_identity_is_zero_with_zero_gradient() -> None:
    features = torch.randn(4, 2, 3, requires_grad=True)
    loss, info = triplet_info(features, torch.zeros(4, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0 and info.active_share == 0.0
    assert features.grad is not None and not features.grad.any()


def test_triplet_info_counts(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = batch
    loss, info = triplet_info(features, labels, 100.0)
    assert info.active_share == 1.0  # a margin larger than any distance
    assert float(loss) == pytest.approx(float(triplet_batch_all(features, labels, 100.0)))
    triples = sum(int((labels == i).sum()) ** 2 * int((labels != i).sum()) for i in range(4))
    assert info.active.tolist() == [triples] * 3
    assert info.mean_distance.shape == (3,) and not info.per_strip.requires_grad


def test_triplet_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"\[n, s, d\]"):
        triplet_batch_all(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(InputError):
        triplet_batch_all(torch.zeros(4, 2, 3), torch.zeros(5))


@pytest.mark.parametrize("name", ["a", "b"])
def test_triplet_equals_the_reference(parity_dir: Path, name: str) -> None:
    values = json.loads((parity_dir / "losses.json").read_text())
    arrays: Any = np.load(parity_dir / "losses.npz", allow_pickle=False)
    features = torch.from_numpy(arrays[f"trip_emb_{name}"]).transpose(1, 2).contiguous().requires_grad_()
    loss, info = triplet_info(features, torch.from_numpy(arrays[f"trip_lab_{name}"]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(values[f"triplet_{name}"], rel=1e-5)
    np.testing.assert_allclose(info.per_strip.numpy(), arrays[f"trip_loss_per_part_{name}"], atol=2e-6)
    np.testing.assert_array_equal(info.active.numpy(), arrays[f"trip_num_{name}"])
    np.testing.assert_allclose(info.mean_distance.numpy(), arrays[f"trip_mean_dist_{name}"], rtol=1e-4)
    assert features.grad is not None
    np.testing.assert_allclose(features.grad.numpy().transpose(0, 2, 1), arrays[f"trip_grad_{name}"], atol=1e-6)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize(("scale", "smooth"), [(16, True), (1, False), (1, True)])
def test_cross_entropy_equals_the_reference(parity_dir: Path, name: str, scale: int, smooth: bool) -> None:
    values = json.loads((parity_dir / "losses.json").read_text())
    arrays: Any = np.load(parity_dir / "losses.npz", allow_pickle=False)
    key = f"{name}_scale{scale}_smooth{smooth}"
    logits = torch.from_numpy(arrays[f"ce_logits_{name}"]).transpose(1, 2).contiguous().requires_grad_()
    labels = torch.from_numpy(arrays[f"trip_lab_{name}"])
    loss = cross_entropy(logits, labels, scale, 0.1 if smooth else 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(values[f"ce_{key}"], rel=1e-5)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy().transpose(0, 2, 1), arrays[f"ce_grad_{key}"], atol=1e-6)


def test_cross_entropy_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    logits, labels, scale, smoothing = rng.standard_normal((4, 3, 5)), np.array([0, 4, 2, 2]), 16.0, 0.1
    total = 0.0
    for i in range(4):
        for strip in range(3):
            z = scale * logits[i, strip]
            log_p = z - z.max() - math.log(np.exp(z - z.max()).sum())
            q = np.full(5, smoothing / 5)
            q[labels[i]] += 1 - smoothing
            total -= float(q @ log_p)
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(found) == pytest.approx(total / 12, rel=1e-9)
    with pytest.raises(InputError):
        cross_entropy(torch.zeros(4, 3, 5), torch.zeros(3, dtype=torch.long))


def test_ranking_loss_is_equation_1() -> None:
    pos = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    neg = torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)

    def star(d_pos: float, d_neg: float) -> float:
        return -math.log(1 / (1 + math.exp(-(d_neg - d_pos))))

    # Equal distances count as ranked correctly (>=), so they are damped too.
    terms = [0.1 * star(1, 2), 0.1 * star(2, 2), star(3, 1)]
    np.testing.assert_allclose(ranking_loss(pos, neg, reduction="none").numpy(), terms, rtol=1e-12)
    assert float(ranking_loss(pos, neg)) == pytest.approx(sum(terms))
    assert float(ranking_loss(pos, neg, reduction="mean")) == pytest.approx(sum(terms) / 3)


def test_ranking_loss_pulls_positives_and_pushes_negatives_without_overflow() -> None:
    pos = torch.tensor([1.0, 3.0, 1e4], requires_grad=True)
    neg = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    loss = ranking_loss(pos, neg)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(1e4, rel=1e-3)
    assert pos.grad is not None and neg.grad is not None
    assert (pos.grad > 0).all() and (neg.grad < 0).all()
    assert pos.grad[1] > pos.grad[0]  # the wrong one counts more
    with pytest.raises(InputError):
        ranking_loss(pos, neg[:2])
    with pytest.raises(OptionError, match="sum, mean or none"):
        ranking_loss(pos, neg, reduction="total")
