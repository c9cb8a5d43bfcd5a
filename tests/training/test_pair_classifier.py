"""The binary classifier of Figure 6: its network, its training on CarGait's lists, and what it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gaitsdk.distance import paired
from gaitsdk.errors import InputError, OptionError
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_training.evaluation import evaluate
from gaitsdk_training.evaluation.ranking import from_network
from gaitsdk_training.reranker import ListSet, RerankerTraining, load_best, train_reranker

CONFIG = RerankerTraining(
    method="classifier", width=32, identities=6, sequences=2, negatives=1, steps=60, lr=3e-3, validate_every=30,
    checkpoint_every=30, log_every=10, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def crowd() -> ListSet:
    """10 people x 6 sequences, F [60, 3, 4]: so noisy that the distance alone often errs."""
    rng = np.random.default_rng(3)
    labels = np.repeat([f"{i:03d}" for i in range(10)], 6)
    features = np.repeat(rng.normal(size=(10, 3, 4)), 6, axis=0) + 1.0 * rng.normal(size=(60, 3, 4))
    names = np.full(60, "nm-01")
    return ListSet.build(features.astype(np.float32), labels, names, np.full(60, "000"), v=12)


@pytest.fixture
def network() -> PairClassifier:
    torch.manual_seed(0)
    return PairClassifier(dims=4, strips=3, width=8).eval()


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 4, generator=generator), torch.randn(5, 7, 3, 4, generator=generator)


def test_it_is_an_mlp_on_the_flattened_concatenation(
    network: PairClassifier, pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    probe, candidates = pairs
    logits, distances = network.logits(probe, candidates), network(probe, candidates)
    for b in range(5):
        for c in range(7):
            joined = torch.cat([probe[b].flatten(), candidates[b, c].flatten()])
            plain = network.score(torch.relu(network.hidden(joined)))
            torch.testing.assert_close(logits[b, c], plain[0])
            torch.testing.assert_close(distances[b, c], -torch.log(torch.sigmoid(plain[0])))


def test_ascending_distances_are_descending_scores(
    network: PairClassifier, pairs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    probe, candidates = pairs
    with torch.no_grad():
        network.score.weight.mul_(40.0)  # a network that is sure: sigmoid alone would give many ones
        logits, distances = network.logits(probe, candidates), network(probe, candidates)
    assert float(logits.max()) > 17 and len(torch.sigmoid(logits).unique()) < logits.numel()
    assert distances.shape == (5, 7) and bool((distances >= 0).all()) and bool(distances.isfinite().all())
    torch.testing.assert_close(distances.argsort(dim=1), logits.argsort(dim=1, descending=True))


def test_a_pair_is_scored_alone(network: PairClassifier, pairs: tuple[torch.Tensor, torch.Tensor]) -> None:
    probe, candidates = pairs
    together = network(probe, candidates)
    for c in range(7):
        torch.testing.assert_close(network(probe, candidates[:, c : c + 1])[:, 0], together[:, c])


def test_bad_input_is_refused(network: PairClassifier) -> None:
    for wrong in ((2, 3, 4), (2, 5, 4, 4), (2, 5, 3, 5), (1, 5, 3, 4)):
        with pytest.raises(InputError, match=r"\[B, 3, 4\]"):
            network(torch.zeros(2, 3, 4), torch.zeros(wrong))
    for options in ({"dims": 0}, {"strips": 1.5}, {"width": True}):
        with pytest.raises(OptionError, match=next(iter(options))):
            PairClassifier(**options)
    with pytest.raises(OptionError, match="method"):
        replace(CONFIG, method="svm")
    assert PairClassifier(**network.options).options == network.options == {"dims": 4, "strips": 3, "width": 8}


def test_training_is_the_binary_cross_entropy_of_the_drawn_pairs(crowd: ListSet, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, log_every=1, negatives=2, lr=1e-12)  # the weights stay what they were
    result = train_reranker(crowd, crowd, config, tmp_path)
    line = next(line for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "loss" in line)
    assert line["loss"] == line["binary_cross_entropy"] and 0 <= line["classified_right"] <= 1
    assert isinstance(result.model, PairClassifier)

    seen: list[float] = []
    rng = np.random.default_rng(0)
    features, lists = torch.from_numpy(crowd.features), crowd.lists
    with torch.no_grad():
        for _ in range(200):
            row = int(rng.integers(len(lists)))
            hit, miss = (rng.choice(lists.candidates[row][lists.positive[row] == wanted]) for wanted in (True, False))
            others = torch.tensor([[hit, miss, miss]])
            logits = result.model.logits(features[lists.probes[row]][None], features[others])
            seen.append(float(F.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0, 0.0]]))))
    assert line["loss"] == pytest.approx(np.mean(seen), abs=0.1)


def test_it_learns_the_lists_and_comes_back_from_disk(crowd: ListSet, tmp_path: Path) -> None:
    result = train_reranker(crowd, crowd, replace(CONFIG, steps=400, validate_every=100), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    terms = [line["binary_cross_entropy"] for line in lines if "binary_cross_entropy" in line]
    untrained = next(line for line in lines if "validation_loss" in line)
    assert terms[-1] < 0.5 * terms[0] and result.step > 0
    assert result.loss < 0.7 * untrained["validation_loss"] and result.rank1 > untrained["validation_rank1"] + 20
    # Compared with the shortlist, not with an untrained classifier.
    lists = crowd.lists
    distances = np.stack([paired(np.repeat(crowd.features[[p]], 12, 0), crowd.features[c]) for p, c in zip(
        lists.probes, lists.candidates, strict=True)])  # fmt: skip
    assert not lists.completed.any()
    first = lists.positive[np.arange(len(lists)), distances[:, :10].argmin(axis=1)]
    assert result.initial_rank1 == pytest.approx(100 * first.mean())

    loaded = load_best(tmp_path)
    assert isinstance(loaded, PairClassifier) and not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])


def test_an_interrupted_run_gives_the_same_weights(crowd: ListSet, tmp_path: Path) -> None:
    def stop(share: float, report: dict[str, object]) -> None:
        if report["step"] == 43:
            raise KeyboardInterrupt

    once = train_reranker(crowd, crowd, CONFIG, tmp_path / "once")
    with pytest.raises(KeyboardInterrupt):
        train_reranker(crowd, crowd, CONFIG, tmp_path / "twice", progress=stop)
    twice = train_reranker(crowd, crowd, CONFIG, tmp_path / "twice")
    assert (once.step, once.loss, once.initial_loss) == (twice.step, twice.loss, twice.initial_loss)
    for name, value in once.model.state_dict().items():
        assert torch.equal(value, twice.model.state_dict()[name]), name
    with pytest.raises(OptionError, match="method"):  # the folder of another method's run
        train_reranker(crowd, crowd, replace(CONFIG, method="cargait"), tmp_path / "once")


def test_protocols_take_it_as_a_reranker(network: PairClassifier) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(["001", "002", "003"], 4)
    types = np.tile(["nm-01", "nm-01", "nm-05", "nm-05"], 3)
    views = np.tile(["000", "090"], 6)
    features = rng.normal(size=(12, 3, 4)).astype(np.float32)
    figures = evaluate(features, labels, types, views, reranker=network, k=3)
    rescored = evaluate(features, labels, types, views, reranker=from_network(network), k=3)
    assert figures["rank1"] == rescored["rank1"] and 0 <= figures["rank1"] <= 100
