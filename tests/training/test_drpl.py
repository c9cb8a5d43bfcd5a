"""DRPL against literal transcriptions of its equations in float64, its limits, variants and numerical edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.losses import (
    DRPL,
    WEIGHTS,
    delta_at,
    hardness_weights,
    triplet_batch_all,
    triplet_batch_hard,
)

LABELS = [0, 0, 0, 1, 1, 2, 2, 2, 3]  # unequal numbers, one identity alone


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    shares = [math.exp(z - top) for z in logits]
    return [each / sum(shares) for each in shares]


def double_softmax(exponents: list[float]) -> list[float]:
    """softmax(exp(a)) for any a: ratios of weights exp(exp(a_i) - exp(a_max)), the difference taken in logarithms."""
    top = max(exponents)
    shares = []
    for a in exponents:
        gap = -math.inf if a == top else top + math.log(-math.expm1(a - top))
        shares.append(0.0 if gap > 7 else math.exp(-math.exp(gap)))
    return [each / sum(shares) for each in shares]


def row_weights(distances: list[float], sign: float, delta: float, kind: str) -> list[float]:
    """Eq. 2 and Table V for one anchor, its positives (sign 1) or its negatives (sign -1)."""
    if kind == "exponential-of-exponential":
        return double_softmax([sign * d / delta for d in distances])
    if kind == "exponential":
        return double_softmax([sign * d for d in distances])
    if kind == "softmax":
        return softmax([sign * d / delta for d in distances])
    if kind == "polynomial":
        return softmax([sign * d**delta for d in distances])
    mean = sum(distances) / len(distances)
    hard = [i for i, d in enumerate(distances) if sign * d >= sign * mean]
    shares = softmax([sign * distances[i] for i in hard])
    return [shares[hard.index(i)] if i in hard else 0.0 for i in range(len(distances))]


def literal(features: np.ndarray, labels: list[int], step: float, total: float, options: dict[str, Any]) -> float:
    """Eq. 2 to 7 for one strip after the other, with loops."""
    margin, n = 0.2, len(labels)
    delta = delta_at(step, total, progress=options["progress"])
    strips = []
    for s in range(features.shape[1]):
        d = [[float(np.linalg.norm(features[i, s] - features[j, s])) for j in range(n)] for i in range(n)]
        hard_terms, all_terms = [], []
        for a in range(n):
            positives = [d[a][p] for p in range(n) if labels[p] == labels[a]]
            negatives = [d[a][q] for q in range(n) if labels[q] != labels[a]]
            if options["batch_hard"] == "vanilla":
                pull, push = max(positives), min(negatives)
            else:
                kind = options["weights"]
                pull = sum(w * x for w, x in zip(row_weights(positives, 1, delta, kind), positives, strict=True))
                push = sum(w * x for w, x in zip(row_weights(negatives, -1, delta, kind), negatives, strict=True))
                if options["mean"] == "printed":
                    pull, push = pull / len(positives), push / len(negatives)
            hard_terms.append(max(0.0, margin + pull - push))
            for p, q in itertools.product(range(n), range(n)):
                own = p == a and options["own_pair"] == "printed"
                if labels[p] == labels[a] and not own and labels[q] != labels[a]:
                    all_terms.append(max(0.0, margin + d[a][p] - d[a][q]))
        totals = []
        for terms in (all_terms, hard_terms):
            counts = {"sum": 1, "mean": len(terms), "nonzero_mean": max(1, sum(term > 0 for term in terms))}
            totals.append(sum(terms) / counts[options["reduction"]])
        strips.append(totals[0] + math.sin(math.pi * step / (2 * total)) * totals[1])
    return float(np.mean(strips))


def batch(scale: float = 0.2) -> torch.Tensor:
    return torch.randn(9, 3, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * scale


PRINTED: dict[str, Any] = {
    "weights": "exponential-of-exponential",
    "progress": "printed",
    "mean": "printed",
    "reduction": "sum",
    "own_pair": "printed",
    "batch_hard": "reweighted",
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"reduction": "mean"},
    {"reduction": "nonzero_mean", "own_pair": "counted"},
    {"progress": "to_minimum", "mean": "weights"},
    {"batch_hard": "vanilla", "reduction": "nonzero_mean"},
    *({"weights": kind, "mean": "weights"} for kind in WEIGHTS),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("scale", [0.05, 0.3, 2.0])
def test_drpl_equals_its_equations(change: dict[str, Any], scale: float) -> None:
    options = PRINTED | change
    features, labels = batch(scale), torch.tensor(LABELS)
    for step in (0, 30, 100):
        expected = literal(features.numpy(), LABELS, step, 100, options)
        assert float(DRPL(100, **options)(features, labels, step)) == pytest.approx(expected, rel=1e-9)
        assert float(DRPL(100, **options)(features.float(), labels, step)) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_sum_to_one_among_positives_and_among_negatives(kind: str) -> None:
    labels = torch.tensor(LABELS)
    same = labels[:, None] == labels[None]
    distances = torch.rand(4, 9, 9, generator=torch.Generator().manual_seed(0)) * 3
    weights = hardness_weights(distances, same, 0.7, kind)
    assert weights.shape == distances.shape and (weights >= 0).all()
    torch.testing.assert_close((weights * same).sum(-1), torch.ones(4, 9))
    torch.testing.assert_close((weights * ~same).sum(-1), torch.ones(4, 9))
    # The hardest counts most: the farthest positive, the nearest negative.
    assert torch.equal((weights * same).argmax(-1), (distances * same).argmax(-1))
    assert torch.equal((weights * ~same).argmax(-1), distances.masked_fill(same, torch.inf).argmin(-1))
    alone = hardness_weights(distances, torch.ones(9, 9, dtype=torch.bool), 0.7, kind)
    torch.testing.assert_close(alone.sum(-1), torch.ones(4, 9))  # no negatives: nothing for them


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 88.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["exponential-of-exponential", "exponential"])
def test_the_inner_exponential_never_overflows_and_stays_right(scale: float, kind: str) -> None:
    rng = np.random.default_rng(int(scale))
    for gap in (1.0, 1e-3):  # far apart, and nearly equal
        values = (scale * (1 + gap * rng.random((8, 8)))).astype(np.float32)
        same = torch.arange(8)[:, None] // 4 == torch.arange(8)[None] // 4
        distances = torch.from_numpy(values).requires_grad_()
        found = hardness_weights(distances, same, 0.8, kind)
        for a in range(8):
            for sign, among in ((1.0, same[a]), (-1.0, ~same[a])):
                expected = row_weights(values[a].astype(float)[among.numpy()].tolist(), sign, 0.8, kind)
                # In float32 d / delta is known to 1e-7 of itself, which the exponential multiplies.
                slack = 1e-5 + (
                    0.0 if sign < 0 else float(min(2e-7 * scale / 0.8 * math.exp(min(scale * 2.5, 700)), 2))
                )
                if slack < 0.1:
                    np.testing.assert_allclose(found[a][among].detach().numpy(), expected, atol=slack)
        in_double = hardness_weights(torch.from_numpy(values.astype(float)), same, 0.8, kind)
        assert torch.isfinite(found).all() and torch.isfinite(in_double).all()
        for a in range(8):
            for sign, among in ((1.0, same[a]), (-1.0, ~same[a])):
                expected = row_weights(values[a].astype(float)[among.numpy()].tolist(), sign, 0.8, kind)
                if scale * 2.5 < 12 or gap == 1.0:
                    np.testing.assert_allclose(in_double[a][among].numpy(), expected, atol=1e-8)
        (gradient,) = torch.autograd.grad((found * distances).sum(), distances)
        assert torch.isfinite(gradient).all()


def test_large_distances_give_the_hardest_positive_and_equal_ones_share() -> None:
    same = torch.tensor([[True, True, True, False]])
    weights = hardness_weights(torch.tensor([[0.0, 999.0, 1000.0, 5.0]]), same, 0.8)
    assert weights.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    weights = hardness_weights(torch.tensor([[0.0, 1000.0, 1000.0, 5.0]]), same, 0.8)
    assert weights.tolist() == [[0.0, 0.5, 0.5, 1.0]]


def test_printed_negatives_flatten_as_delta_falls_and_the_softmax_reading_sharpens() -> None:
    """The slip of Eq. 2 against Figure 4."""
    distances, negatives = torch.linspace(1.0, 3.0, 6)[None], torch.zeros(1, 6, dtype=torch.bool)
    printed = [hardness_weights(distances, negatives, delta).max().item() for delta in (1.5, 0.8, 0.1)]
    softmax_reading = [
        hardness_weights(distances, negatives, delta, "softmax").max().item() for delta in (1.5, 0.8, 0.1)
    ]
    assert printed[0] > printed[1] > printed[2] and printed[2] == pytest.approx(1 / 6, rel=1e-3)
    assert softmax_reading[0] < softmax_reading[1] < softmax_reading[2] and softmax_reading[2] > 0.98


def test_threshold_keeps_what_is_hard_enough_and_always_the_hardest() -> None:
    distances, same = torch.tensor([[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]]), torch.tensor([[True] * 3 + [False] * 3])
    weights = hardness_weights(distances, same, 1.0, "thresholding", threshold=2.0)
    assert (weights > 0).tolist() == [[False, True, True, True, True, False]]
    weights = hardness_weights(distances, same, 1.0, "thresholding", threshold=100.0)
    assert weights[0, :3].tolist() == [0.0, 0.0, 1.0] and (weights[0, 3:] > 0).all()


def test_small_delta_is_batch_hard_in_the_softmax_reading() -> None:
    features, labels = batch(1.0), torch.tensor(LABELS)
    options: dict[str, Any] = {"weights": "softmax", "mean": "weights", "batch_all": False, "smoothness": "equal"}
    expected = float(triplet_batch_hard(features, labels))
    gaps = [
        abs(float(DRPL(1, delta, 0.0, **options)(features, labels, 0)) - expected) for delta in (1.0, 0.1, 0.01, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[3] < 1e-9
    options["batch_hard"] = "vanilla"
    assert float(DRPL(1, **options)(features, labels, 0)) == pytest.approx(expected, rel=1e-12)


def test_drpl_starts_as_the_batch_all_loss_of_the_field() -> None:
    features, labels = batch(), torch.tensor(LABELS)
    assert float(DRPL(100)(features, labels, 0)) == pytest.approx(float(triplet_batch_all(features, labels)), rel=1e-8)
    assert DRPL(100).own_pair == "counted" and DRPL(100, reduction="sum").own_pair == "printed"


@pytest.mark.parametrize("reduction", ["sum", "mean", "nonzero_mean"])
def test_batch_hard_equals_brute_force(reduction: str) -> None:
    features, labels = batch(), torch.tensor(LABELS)
    options = PRINTED | {"batch_hard": "vanilla", "reduction": reduction}
    both = literal(features.numpy(), LABELS, 1, 1, options)
    alone = both - float(DRPL(1, batch_hard="none", reduction=reduction, own_pair="printed")(features, labels, 1))
    assert float(triplet_batch_hard(features, labels, reduction=reduction)) == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_order_of_batch_and_strips_does_not_matter(kind: str) -> None:
    features, labels = batch(0.5), torch.tensor(LABELS)
    loss = DRPL(100, weights=kind, mean="weights")
    expected = float(loss(features, labels, 60))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert float(loss(features[order], labels[order], 60)) == pytest.approx(expected, rel=1e-12)
    assert float(loss(features[:, [2, 0, 1]], labels + 7, 60)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_gradient_equals_finite_differences(kind: str) -> None:
    labels = torch.tensor(LABELS)
    loss = DRPL(100, margin=5.0, weights=kind, mean="weights", weight_gradient="through")
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 70), (batch(0.5).requires_grad_(),), atol=1e-6)


def test_detached_weights_count_as_given() -> None:
    labels, features = torch.tensor(LABELS), batch(0.5).requires_grad_()
    gradients = {}
    for how in ("through", "detached"):
        loss = DRPL(1, mean="weights", weight_gradient=how, batch_all=False)(features, labels, 1)
        gradients[how] = torch.autograd.grad(loss, features)[0]
    assert float((gradients["through"] - gradients["detached"]).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features = batch(0.5).to(dtype).requires_grad_()
    labels, loss = torch.tensor(LABELS), DRPL(10)
    found = loss(features, labels, 5)
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), loss(features.detach().float(), labels, 5))
    found.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None and features.grad.dtype == dtype and torch.isfinite(features.grad).all()
    weights = hardness_weights(torch.rand(3, 3).to(dtype), torch.eye(3, dtype=torch.bool), 1.0)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 40.0, 1e4])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("how", ["through", "detached"])
def test_gradients_are_finite_and_bounded_at_any_scale(scale: float, kind: str, how: str) -> None:
    """Coinciding sequences and repeated ones (a sampler repeats where an identity has too few) are part of it."""
    features = (batch(1.0).float() * scale)[[0, 0, 1, 1, 3, 4, 5, 5, 6]].requires_grad_()
    loss = DRPL(10, weights=kind, weight_gradient=how, mean="weights", progress="to_minimum", reduction="sum")
    value = loss(features, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2]), 10)
    value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(value)
    assert features.grad is not None and torch.isfinite(features.grad).all() and features.grad.abs().max() < 1e4


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"batch_hard": "vanilla", "reduction": "mean"}], ids=str)
def test_a_single_identity_gives_zero_and_single_sequences_have_themselves(options: dict[str, Any]) -> None:
    features = batch(1.0).requires_grad_()
    loss = DRPL(10, **options)(features, torch.zeros(9, dtype=torch.long), 10)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0 and features.grad is not None and not features.grad.any()
    everyone_else = DRPL(10, batch_all=False, batch_hard="vanilla", reduction="sum")(batch(1e-3), torch.arange(9), 10)
    nearest = torch.cdist(batch(1e-3).transpose(0, 1), batch(1e-3).transpose(0, 1))
    nearest = nearest + torch.eye(9) * 1e9
    assert float(everyone_else) == pytest.approx(float((0.2 - nearest.amin(-1)).sum(-1).mean()), rel=1e-9)
    assert torch.isfinite(DRPL(10, **options)(batch(1.0), torch.arange(9), 10))


def test_terms_add_up_and_carry_no_gradient() -> None:
    features, labels = batch().requires_grad_(), torch.tensor(LABELS)
    loss, terms = DRPL(100).detailed(features, labels, 40)
    assert set(terms) == {"batch_all", "batch_hard", "smoothness", "delta"}
    assert not any(value.requires_grad for value in terms.values())
    assert float(loss.detach()) == pytest.approx(float(terms["batch_all"] + terms["smoothness"] * terms["batch_hard"]))
    assert float(terms["delta"]) == pytest.approx(delta_at(40, 100, progress=DRPL(100).progress))


def test_impossible_options_and_shapes_are_refused() -> None:
    for wrong in (
        "weights",
        "progress",
        "mean",
        "reduction",
        "own_pair",
        "weight_gradient",
        "batch_hard",
        "smoothness",
    ):
        with pytest.raises(OptionError, match=f"DRPL.{wrong}"):
            DRPL(10, **{wrong: "other"})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="nothing is left"):
        DRPL(10, batch_all=False, batch_hard="none")
    with pytest.raises(OptionError):
        DRPL(0)
    with pytest.raises(OptionError):
        DRPL(10)(batch(), torch.tensor(LABELS), -1)
    for features, labels in ((torch.zeros(4, 2), 4), (torch.zeros(4, 2, 3), 5), (torch.zeros(4, 2, 3).long(), 4)):
        with pytest.raises(InputError, match=r"\[n, s, d\]"):
            DRPL(10)(features, torch.zeros(labels), 1)
    with pytest.raises(OptionError):
        triplet_batch_hard(batch(), torch.tensor(LABELS), reduction="total")
    with pytest.raises(OptionError):
        hardness_weights(torch.rand(2, 2), torch.eye(2, dtype=torch.bool), 0.0)
    with pytest.raises(OptionError):
        hardness_weights(torch.rand(2, 2), torch.eye(2, dtype=torch.bool), 1.0, "linear")
    with pytest.raises(InputError):
        hardness_weights(torch.rand(2, 2), torch.eye(3, dtype=torch.bool), 1.0)
    with pytest.raises(InputError):
        hardness_weights(torch.rand(2, 2), torch.eye(2), 1.0)
