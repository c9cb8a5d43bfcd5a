"""GSAM against literal transcriptions of Eq. 8 to 10 in float64, its variants, checkpoints and errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.errors import InputError, OptionError, TrainingError
from gaitsdk_training.losses import GSAM

PEOPLE, STRIPS, DIMS = 5, 3, 4
LABELS = [0, 0, 0, 2, 2, 4]  # 1 and 3 are absent
OPTIONS: list[dict[str, Any]] = [
    {},
    *({"present": present, "absent": absent} for present in ("batch", "identity") for absent in ("printed", "towards")),
    {"present": "identity", "absent": "movement", "variance": "identity"},
    *({"update": update} for update in ("momentum", "hard", "none")),
    {"temperature": 0.5, "alpha": 0.3, "beta": 0.6, "variance_weight": 0.25},
]


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, STRIPS, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches, identities spread over them, unequal numbers."""
    return [
        (features(4, 1), torch.tensor([3, 1, 0, 0])),
        (features(2, 2), torch.tensor([4, 3])),
        (features(5, 3), torch.tensor([2, 2, 2, 0, 1])),
    ]


def ready(**options: Any) -> GSAM:
    gsam = GSAM(PEOPLE, STRIPS, DIMS, **options).double()
    gsam.initialise(pairs())
    return gsam


def literal_memory(memory: np.ndarray, f: np.ndarray, labels: list[int], gsam: GSAM) -> np.ndarray:
    """Eq. 9, one identity after the other."""
    old, new, n = memory, memory.copy(), len(labels)
    mean = sum(f) / n
    movement = sum(f[b] - old[labels[b]] for b in range(n)) / n
    for i in range(len(memory)):
        own = [f[b] for b in range(n) if labels[b] == i]
        if gsam.update == "none":
            continue
        if own and gsam.update == "hard":
            new[i] = sum(own) / len(own)
        elif own:
            divisor = n if gsam.present == "batch" else len(own)
            new[i] = (1 - gsam.alpha) / divisor * sum(own) + gsam.alpha * old[i]
        elif gsam.update == "structure-aligned":
            b = gsam.beta
            new[i] = {
                "printed": (1 - b) * (mean - old[i]) + b * old[i],
                "towards": (1 - b) * mean + b * old[i],
                "movement": old[i] + (1 - b) * movement,
            }[gsam.absent]
    return new


def literal_loss(memory: np.ndarray, f: np.ndarray, labels: list[int], gsam: GSAM) -> float:
    """Eq. 10 with F and M normalised per strip."""
    unit = f / np.linalg.norm(f, axis=-1, keepdims=True)
    total, n = 0.0, len(labels)
    for b in range(n):
        for s in range(STRIPS):
            logits = [
                float(unit[b, s] @ memory[i, s] / np.linalg.norm(memory[i, s])) / gsam.temperature
                for i in range(PEOPLE)
            ]
            entropy = math.log(sum(math.exp(z) for z in logits)) - logits[labels[b]]
            group = range(n) if gsam.variance == "batch" else [c for c in range(n) if labels[c] == labels[b]]
            centre = sum(unit[c, s] for c in group) / len(group)
            total += entropy + gsam.variance_weight * float(((unit[b, s] - centre) ** 2).sum())
    return total / (n * STRIPS)


def test_the_memory_starts_as_the_centroids() -> None:
    gsam = ready()
    everything, labels = (torch.cat(parts) for parts in zip(*pairs(), strict=True))
    for i in range(PEOPLE):
        torch.testing.assert_close(gsam.memory[i], everything[labels == i].mean(dim=0))
    assert gsam.memory.shape == (PEOPLE, STRIPS, DIMS) and not gsam.memory.requires_grad
    # The batches in which they come do not matter.
    other = GSAM(PEOPLE, STRIPS, DIMS).double()
    other.initialise([(everything.flip(0), labels.flip(0))])
    torch.testing.assert_close(other.memory, gsam.memory)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_update_and_loss_equal_their_equations(options: dict[str, Any]) -> None:
    gsam = ready(**options)
    memory = gsam.memory.numpy().copy()
    for step in range(3):
        f = features(len(LABELS), 10 + step)
        memory = literal_memory(memory, f.numpy(), LABELS, gsam)
        # The memory is updated first, and the loss sees the new one.
        assert float(gsam(f, torch.tensor(LABELS))) == pytest.approx(literal_loss(memory, f.numpy(), LABELS, gsam))
        np.testing.assert_allclose(gsam.memory.numpy(), memory, rtol=1e-12)


def test_printed_absent_update_shrinks_the_memory_to_half_the_batch_mean_and_movement_keeps_it() -> None:
    """The slip of Eq. 9."""
    f, labels = features(4, 20), torch.tensor([0, 0, 2, 2])
    gsam, moved = ready(), ready(absent="movement", present="identity")
    apart = moved.memory[1] - moved.memory[3]
    for _ in range(200):
        gsam(f, labels), moved(f, labels)
    torch.testing.assert_close(gsam.memory[1], 0.5 * f.mean(dim=0))
    torch.testing.assert_close(gsam.memory[1], gsam.memory[3])  # nothing tells them apart any more
    torch.testing.assert_close(moved.memory[1] - moved.memory[3], apart)
    torch.testing.assert_close(moved.memory[0], f[:2].mean(dim=0))


def test_the_hardest_the_random_and_the_multiple_sequences_of_an_identity() -> None:
    everything, labels = (torch.cat(parts) for parts in zip(*pairs(), strict=True))
    hardest = ready(element="hardest")
    for i in range(PEOPLE):
        own = everything[labels == i]
        distances = (own - own.mean(dim=0)).norm(dim=-1).mean(dim=-1)
        torch.testing.assert_close(hardest.memory[i], own[distances.argmax()])
    random, several = ready(element="random"), ready(element="multi-sequence")
    assert several.memory.shape == (PEOPLE, 8, STRIPS, DIMS)
    for i in range(PEOPLE):
        own = everything[labels == i]
        assert any(torch.equal(random.memory[i], each) for each in own)
        used = {next(k for k, each in enumerate(own) if torch.equal(slot, each)) for slot in several.memory[i]}
        assert used == set(range(len(own)))  # all of them, since none has more than 8
    f, present = features(6, 30), torch.tensor(LABELS)
    for element in ("hardest", "random", "multi-sequence"):
        gsam = ready(element=element, update="hard")
        before = gsam.memory.clone()
        gsam(f, present)
        for i in (1, 3):
            assert torch.equal(gsam.memory[i], before[i])
        for slot in gsam.memory.view(PEOPLE, -1, STRIPS, DIMS)[0]:
            assert any(torch.equal(slot, each) for each in f[:3])
        if element == "hardest":
            far = (f[:3] - before[0]).norm(dim=-1).mean(dim=-1).argmax()
            assert torch.equal(gsam.memory[0], f[far])


def test_several_sequences_of_an_identity_add_up_in_the_softmax() -> None:
    gsam = ready(element="multi-sequence", update="none", variance_weight=0.0)
    f = features(6, 31)
    unit, memory = (x / x.norm(dim=-1, keepdim=True) for x in (f, gsam.memory))
    probabilities = torch.einsum("nsd,cmsd->nscm", unit, memory).div(0.1).flatten(2).softmax(-1).unflatten(2, (-1, 8))
    own = probabilities.sum(-1)[torch.arange(6), :, LABELS]
    assert float(gsam(f, torch.tensor(LABELS))) == pytest.approx(float(-own.log().mean()), rel=1e-9)


@pytest.mark.parametrize("element", ["centroid", "hardest", "random", "multi-sequence"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(element: str) -> None:
    torch.manual_seed(0)
    straight = ready(element=element)
    labels = torch.tensor(LABELS)
    for step in range(3):
        straight(features(6, step), labels)
    resumed = GSAM(PEOPLE, STRIPS, DIMS, element=element).double()
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    torch.manual_seed(99)  # random elements come from buffers, not from the global state
    for step in range(3, 6):
        assert torch.equal(straight(features(6, step), labels), resumed(features(6, step), labels))
    assert torch.equal(straight.memory, resumed.memory) and int(resumed.updates) == 6


def test_order_of_the_batch_does_not_matter_and_strips_stay_apart() -> None:
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    f, labels = features(6, 40), torch.tensor(LABELS)
    one, other = ready(), ready()
    assert float(one(f, labels)) == pytest.approx(float(other(f[order], labels[order])), rel=1e-12)
    torch.testing.assert_close(one.memory, other.memory)
    changed = f.clone()
    changed[:, 1] += 3.0
    third = ready()
    third(changed, labels)
    assert torch.equal(third.memory[:, [0, 2]], one.memory[:, [0, 2]])
    assert not torch.equal(third.memory[:, 1], one.memory[:, 1])


def test_gradient_reaches_the_features_and_not_the_memory() -> None:
    gsam = ready(variance="identity").eval()  # finite differences need a memory that stands still
    labels = torch.tensor(LABELS)
    assert torch.autograd.gradcheck(lambda x: gsam(x, labels), (features(6, 50).requires_grad_(),), atol=1e-6)
    gsam.train()
    f = features(6, 50).requires_grad_()
    first = gsam(f, labels)
    gsam(features(6, 51), labels)  # changes the memory in place; the graph of the first loss has its own copy
    first.backward()  # type: ignore[no-untyped-call]
    assert f.grad is not None and f.grad.abs().max() > 0
    assert not gsam.memory.requires_grad and not list(gsam.parameters())


def test_evaluation_leaves_the_memory_alone() -> None:
    gsam = ready().eval()
    before = gsam.memory.clone()
    gsam(features(6), torch.tensor(LABELS))
    assert torch.equal(gsam.memory, before) and int(gsam.updates) == 0


def test_empty_strips_have_finite_gradients() -> None:
    f = features(6, 60)
    f[2, 1] = 0.0
    f.requires_grad_()
    loss = ready()(f, torch.tensor(LABELS))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and f.grad is not None and f.grad.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    f, labels = features(6, 70).to(dtype), torch.tensor(LABELS)
    one, other = (GSAM(PEOPLE, STRIPS, DIMS) for _ in range(2))
    for gsam in (one, other):
        gsam.initialise(pairs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one(f, labels)
    assert found.dtype == torch.float32 == one.memory.dtype
    assert torch.equal(found, other(f.float(), labels)) and torch.equal(one.memory, other.memory)


def test_terms_add_up() -> None:
    loss, terms = ready(variance_weight=0.5).detailed(features(6).requires_grad_(), torch.tensor(LABELS))
    assert set(terms) == {"cross_entropy", "variance", "accuracy"} and 0.0 <= float(terms["accuracy"]) <= 1.0
    assert not any(value.requires_grad for value in terms.values())
    assert float(loss.detach()) == pytest.approx(float(terms["cross_entropy"] + 0.5 * terms["variance"]))


def test_a_memory_that_is_not_filled_is_refused() -> None:
    gsam = GSAM(PEOPLE, STRIPS, DIMS).double()
    with pytest.raises(TrainingError, match="initialise"):
        gsam(features(6), torch.tensor(LABELS))
    with pytest.raises(TrainingError, match=r"2 of 5 missing: 1, 3"):
        gsam.initialise([(features(6), torch.tensor(LABELS))])
    with pytest.raises(TrainingError, match="missing: 0, 1, 2, 3, 4"):
        gsam.initialise([])
    broken = features(5)
    broken[3, 1, 2] = math.nan
    with pytest.raises(TrainingError, match=r"sequence of 3\."):
        gsam.initialise([(broken, torch.arange(5))])
    assert not bool(gsam.initialised) and not gsam.memory.any()


def test_impossible_options_shapes_and_labels_are_refused() -> None:
    for wrong in ("element", "update", "present", "absent", "variance"):
        with pytest.raises(OptionError, match=f"GSAM.{wrong}"):
            GSAM(PEOPLE, STRIPS, DIMS, **{wrong: "other"})  # type: ignore[arg-type]
    for options in ({"temperature": 0.0}, {"alpha": 1.5}, {"beta": -0.1}, {"num_identities": 0}, {"dims": 0}):
        with pytest.raises(OptionError):
            GSAM(**({"num_identities": PEOPLE, "strips": STRIPS, "dims": DIMS} | options))  # type: ignore[arg-type]
    gsam = ready()
    for f, labels in (
        (features(6)[:, :2], torch.tensor(LABELS)),
        (features(6), torch.tensor(LABELS)[:5]),
        (features(6), torch.tensor(LABELS)[:, None]),
        (features(6).long(), torch.tensor(LABELS)),
        (features(0), torch.tensor([], dtype=torch.long)),
    ):
        with pytest.raises(InputError, match="do not fit"):
            gsam(f, labels)
    for labels in (torch.tensor([0, 0, 0, 2, 2, 5]), torch.tensor([-1, 0, 0, 2, 2, 4]), torch.tensor(LABELS).int()):
        with pytest.raises(InputError, match="0 to 4"):
            gsam(features(6), labels)
