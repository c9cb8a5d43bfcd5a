"""Lists D and the training of CarGait, on constructed features."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk.distance import paired
from gaitsdk.errors import InputError, OptionError, TrainingError
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.evaluation.ranking import from_network
from gaitsdk_training.interruption import TrainingStopped, ctrl_c_requests_a_stop
from gaitsdk_training.lists import build_lists
from gaitsdk_training.losses import ranking_loss
from gaitsdk_training.reranker import ListSet, RerankerTraining, load_best, train_reranker

CONFIG = RerankerTraining(
    width=32, heads=4, identities=12, sequences=2, negatives=4, steps=120, lr=3e-3, validate_every=40,
    checkpoint_every=40, log_every=20, device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def disturbed(identities: range, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What attention can mend: half of the dimensions tell the person, the other half hold a large disturbance that all
    strips of a sequence share. The distance alone cannot tell them apart."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]
    person, disturbance = axes[:, :8], axes[:, 8:]
    rng = np.random.default_rng(seed)
    features, labels = [], []
    for identity in identities:
        base = rng.normal(size=(6, 8))
        for _ in range(5):
            own = 0.6 * base + 0.2 * rng.normal(size=(6, 8))
            features.append(own @ person.T + 1.5 * rng.normal(size=(1, 8)) @ disturbance.T)
            labels.append(f"{identity:03d}")
    return np.asarray(features, np.float32), np.array(labels)


def listed(identities: range, seed: int, v: int = 15) -> ListSet:
    features, labels = disturbed(identities, seed)
    return ListSet.build(features, labels, np.full(len(labels), "nm-01"), np.full(len(labels), "000"), v=v)


@pytest.fixture(scope="module")
def training() -> ListSet:
    return listed(range(40), 1)


@pytest.fixture(scope="module")
def validation() -> ListSet:
    return listed(range(100, 120), 2)


def crowd(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """5 people x 3 types x 3 views, features [45, 2, 4]."""
    rng = np.random.default_rng(seed)
    labels, types, views = (
        np.array(each)
        for each in zip(
            *[(i, t, v) for i in "abcde" for t in ("nm-01", "nm-02", "cl-01") for v in ("0", "4", "9")], strict=True
        )
    )
    return rng.normal(size=(45, 2, 4)).astype(np.float32), labels, types, views


def test_lists_hold_the_nearest_in_order() -> None:
    features, labels, types, views = crowd()
    lists = build_lists(features, labels, types, views, v=40)
    assert len(lists) == 45 and lists.left_out == 0 and not lists.completed.any()
    for probe, candidates, positive in zip(lists.probes, lists.candidates, lists.positive, strict=True):
        assert probe not in candidates and len(set(candidates.tolist())) == 40
        distances = paired(np.repeat(features[[probe]], 40, 0), features[candidates])
        assert (np.diff(distances) >= -1e-5).all()
        np.testing.assert_array_equal(positive, labels[candidates] == labels[probe])
    missing = [
        np.setdiff1d(np.arange(45), [*row, probe]) for row, probe in zip(lists.candidates, lists.probes, strict=True)
    ]
    for probe, rest, row in zip(lists.probes, missing, lists.candidates, strict=True):
        furthest = paired(features[[probe]], features[[row[-1]]])[0]
        assert (paired(np.repeat(features[[probe]], len(rest), 0), features[rest]) >= furthest - 1e-5).all()


def test_lists_of_one_other_view() -> None:
    features, labels, types, views = crowd()
    lists = build_lists(
        features, labels, types, views, v=30, scope="view_pair", gallery_types=["nm-01", "nm-02"], galleries_per_probe=2
    )
    assert len(lists) == 90
    for probe, candidates in zip(lists.probes, lists.candidates, strict=True):
        assert len(set(views[candidates].tolist())) == 1 and views[candidates[0]] != views[probe]
        assert set(types[candidates].tolist()) <= {"nm-01", "nm-02"}
        same_walk = (labels[candidates] == labels[probe]) & (types[candidates] == types[probe])
        assert not same_walk.any()
    pairs = {(int(p), str(views[c[0]])) for p, c in zip(lists.probes, lists.candidates, strict=True)}
    assert len(pairs) == 90  # two different views per probe
    again = build_lists(features, labels, types, views, v=30, scope="view_pair", galleries_per_probe=1, seed=4)
    other = build_lists(features, labels, types, views, v=30, scope="view_pair", galleries_per_probe=1, seed=5)
    assert len(again) == 45 and sorted(again.probes.tolist()) == list(range(45))
    assert {(p, views[c[0]]) for p, c in zip(again.probes.tolist(), again.candidates, strict=True)} != {
        (p, views[c[0]]) for p, c in zip(other.probes.tolist(), other.candidates, strict=True)
    }


def test_lists_are_completed_by_the_nearest_from_outside() -> None:
    # On a line: a at 0 and 10, everybody else in between; b are neighbours.
    positions = np.array([0.0, 10.0, 1.0, 2.0, 3.0, 3.1, 3.2, 3.3], np.float32).reshape(-1, 1, 1)
    labels = np.array(["a", "a", "c", "d", "b", "b", "b", "b"])
    names = np.full(8, "x")
    lists = build_lists(positions, labels, names, names, v=2)
    found = {int(p): (c.tolist(), m.tolist(), bool(x)) for p, c, m, x in zip(
        lists.probes, lists.candidates, lists.positive, lists.completed, strict=True)}  # fmt: skip
    assert found[0] == ([2, 1], [False, True], True)  # the other a is the furthest of all
    assert found[5][0][0] in (4, 6) and found[5] == ([found[5][0][0], 3], [True, False], True)  # all neighbours are b
    assert 2 not in found and 3 not in found and lists.left_out == 2  # c and d are alone
    strict = build_lists(positions, labels, names, names, v=4, complete=False)
    assert not strict.completed.any() and sorted(strict.probes.tolist()) == [4, 5, 6, 7]


def test_impossible_lists_are_refused() -> None:
    features, labels, types, views = crowd()
    with pytest.raises(OptionError, match="scope"):
        build_lists(features, labels, types, views, scope="some")
    with pytest.raises(InputError, match="labels"):
        build_lists(features, labels[:-1], types, views)
    with pytest.raises(TrainingError, match="no probe"):
        build_lists(features, np.arange(45), types, views)
    with pytest.raises(TrainingError, match="no probe"):
        build_lists(features, labels, types, np.full(45, "0"), scope="view_pair")


def test_training_ranks_better_where_attention_helps(training: ListSet, validation: ListSet, tmp_path: Path) -> None:
    result = train_reranker(training, validation, CONFIG, tmp_path)
    assert result.step > 0
    assert result.loss < 0.5 * result.initial_loss
    assert result.rank1 > result.initial_rank1 + 15.0
    assert not result.model.training and result.model.num_classes == 40
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 40, 80, 120]
    assert {"ranking", "cross_entropy", "ranked_right"} <= next(line for line in lines if "loss" in line).keys()


def test_validation_loss_is_the_mean_over_all_pairs_of_a_list(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    result = train_reranker(training, validation, replace(CONFIG, steps=40, validation_lists=None), tmp_path)
    rescore = from_network(result.model)
    expected, hits = [], []
    for probe, row, positive in zip(
        *(getattr(validation.lists, x) for x in ("probes", "candidates", "positive")), strict=True
    ):
        d = np.asarray(rescore(validation.features[[probe]], validation.features[row][None]))[0].astype(np.float64)
        terms = [float(ranking_loss(torch.tensor(p), torch.tensor(n), 0.1)) for p in d[positive] for n in d[~positive]]
        expected.append(np.mean(terms))
        hits.append(positive[d[:10].argmin()])
    assert result.loss == pytest.approx(np.mean(expected), rel=1e-4)
    assert result.rank1 == pytest.approx(100 * np.mean(hits))


def test_the_start_is_kept_where_training_makes_it_worse(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    # Labels without meaning: what is learnt on them cannot help on others.
    shuffled = replace(validation, labels=validation.labels)
    wild = replace(CONFIG, lr=1.0, steps=4, validate_every=2, alpha=0.0, clip_norm=1.0)
    result = train_reranker(training, shuffled, wild, tmp_path)
    assert result.loss <= result.initial_loss
    if result.step == 0:
        probe, others = (
            torch.from_numpy(training.features[:3]),
            torch.from_numpy(training.features[3:9]).reshape(3, 2, 6, 16),
        )
        with torch.no_grad():
            new = result.model(probe, others).numpy()
        flat = paired(np.repeat(training.features[:3], 2, 0), training.features[3:9]).reshape(3, 2)
        np.testing.assert_allclose(new, flat, rtol=1e-5)


def test_an_interrupted_run_gives_the_same_weights(training: ListSet, validation: ListSet, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, validate_every=10, checkpoint_every=10, negatives=1)

    def stop(share: float, report: dict[str, object]) -> None:
        if report["step"] == 17:
            raise KeyboardInterrupt

    once = train_reranker(training, validation, config, tmp_path / "once")
    with pytest.raises(KeyboardInterrupt):
        train_reranker(training, validation, config, tmp_path / "twice", progress=stop)
    twice = train_reranker(training, validation, config, tmp_path / "twice")
    assert (once.step, once.loss, once.initial_loss) == (twice.step, twice.loss, twice.initial_loss)
    for name, value in once.model.state_dict().items():
        assert torch.equal(value, twice.model.state_dict()[name]), name
    assert torch.equal(load_best(tmp_path / "once").output.weight, once.model.output.weight)


def test_fused_and_conditioned_distances_train_the_same_way(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    """Without classifier the loop takes CarGait's fused distances; a vanishing alpha must give the same start."""
    short = replace(CONFIG, steps=1, log_every=1, validate_every=10)
    losses = []
    for name, alpha in (("fused", 0.0), ("attended", 1e-12)):
        train_reranker(training, validation, replace(short, alpha=alpha), tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses.append(next(line["ranking"] for line in lines if "ranking" in line))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(training: ListSet, validation: ListSet, tmp_path: Path) -> None:
    broken = replace(training, features=np.where(np.arange(16) == 3, np.float32(np.nan), training.features))
    with pytest.raises(TrainingError, match=r"step 1.*not finite"):
        train_reranker(broken, validation, CONFIG, tmp_path)
    assert isinstance(load_best(tmp_path), CarGait)  # step 0


def test_impossible_runs_are_refused(training: ListSet, validation: ListSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="fewer identities"):
        train_reranker(training, validation, replace(CONFIG, identities=41), tmp_path)
    with pytest.raises(InputError, match="differ in shape"):
        train_reranker(training, replace(validation, features=validation.features[:, :3]), CONFIG, tmp_path)
    for wrong in ({"select": "luck"}, {"negatives": 0}, {"lr": -1.0}, {"reduction": "none"}):
        with pytest.raises(OptionError):
            replace(CONFIG, **wrong)


def test_defaults_are_the_papers() -> None:
    """Section 4.3."""
    config = RerankerTraining()
    assert (config.lr, config.weight_decay, config.alpha, config.beta) == (1e-5, 1e-2, 0.01, 0.1)
    assert (config.identities * config.sequences, config.negatives, config.heads, config.width) == (128, 1, 8, 256)
    assert (config.steps, config.validate_every, config.k, config.reduction) == (100_000, 10_000, 10, "sum")


def interrupting(step: int) -> Callable[[float, dict[str, Any]], None]:
    """A progress function during which Ctrl-C is pressed."""

    def progress(_: float, report: dict[str, Any]) -> None:
        if report["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return progress


def test_ctrl_c_ends_with_a_checkpoint_and_the_result_stays_the_same(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=30, validate_every=10)
    with pytest.raises(TrainingStopped, match="stopped at step 17"):
        train_reranker(training, validation, config, tmp_path / "stopped", progress=interrupting(17))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [each.name for each in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-0000017"]
    stopped = train_reranker(training, validation, config, tmp_path / "stopped")
    straight = train_reranker(training, validation, config, tmp_path / "straight")
    assert (stopped.steps, stopped.step, stopped.loss) == (straight.steps, straight.step, straight.loss)
    for key, value in straight.model.state_dict().items():
        assert torch.equal(stopped.model.state_dict()[key], value), key


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with ctrl_c_requests_a_stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_refused_run_leaves_nothing(training: ListSet, validation: ListSet, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="fewer identities"):
        train_reranker(training, validation, replace(CONFIG, identities=500), tmp_path / "run")
    with pytest.raises(OptionError, match="device"):
        train_reranker(training, validation, replace(CONFIG, device="cuda:99"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "v", "changes"),
    [
        ("3 classifier", 15, {"method": "classifier"}),
        ("4 alpha", 15, {"alpha": 0.0}),
        ("5 beta", 15, {"beta": 1.0}),
        ("6 K=5", 15, {"k": 5}),
        ("7 K=20", 30, {"k": 20}),
        ("8 v=20", 20, {}),
        ("9 v=40", 40, {}),
        ("10 CarGait", 30, {}),
    ],
)
def test_the_rows_of_table_5_run(row: str, v: int, changes: dict[str, Any], tmp_path: Path) -> None:
    training, validation = listed(range(12), 1, v), listed(range(100, 110), 2, v)
    config = replace(CONFIG, steps=2, validate_every=2, log_every=1, validation_lists=None, **changes)
    result = train_reranker(training, validation, config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    step = next(line for line in lines if "loss" in line)
    assert training.lists.candidates.shape == (60, v) and np.isfinite(result.loss)
    assert ("cross_entropy" in step) == (config.alpha > 0 and config.method == "cargait")
    assert ("binary_cross_entropy" in step) == (config.method == "classifier")
    # K is the length of the list that is re-ranked: the shortlist's own first is the same for every K.
    lists = validation.lists
    assert result.initial_rank1 == pytest.approx(100 * lists.positive[:, 0].mean())


def test_without_damping_the_ranked_triplets_count_in_full(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    """Table 5, row 5, on the first step: the same triplets, beta times those that are ranked right."""
    losses = {}
    for beta in (1.0, 0.5, 0.1):
        config = replace(CONFIG, steps=1, log_every=1, beta=beta, alpha=0.0)
        train_reranker(training, validation, config, tmp_path / str(beta))
        lines = [json.loads(line) for line in (tmp_path / str(beta) / "log.jsonl").read_text().splitlines()]
        losses[beta] = next(line["ranking"] for line in lines if "ranking" in line)
    assert losses[0.1] < losses[0.5] < losses[1.0]
    assert losses[0.5] == pytest.approx(losses[1.0] + (losses[0.1] - losses[1.0]) * 0.5 / 0.9, rel=1e-5)


def test_extra_training_of_the_backbone_goes_on_with_its_run(tmp_path: Path) -> None:
    """Table 5, row 2: the same run with more steps."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 2, 64, 64), dtype=np.uint8)
    data = SequenceDataset(frames, np.repeat(["a", "b"], 4), np.full(8, "nm-01"), np.full(8, "000"))
    options = {"channels": (4, 4, 8, 8), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 8, "strips": 4}
    config = BackboneTraining(options=options, p=2, k=2, frames=2, steps=2, device="cpu", workers=0, log_every=1)
    initial = train_backbone(data, config, tmp_path)
    extra = train_backbone(data, replace(config, steps=5), tmp_path)
    assert (initial.steps, extra.steps) == (2, 5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5] and steps.count(1) == 1
    before, after = initial.model.state_dict(), extra.model.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_from_before_there_were_methods_is_resumed(
    training: ListSet, validation: ListSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=4, validate_every=4, checkpoint_every=2)
    train_reranker(training, validation, replace(config, steps=2), tmp_path)
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert recorded.pop("method") == "cargait"
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(OptionError, match="method='classifier'"):
        train_reranker(training, validation, replace(config, method="classifier"), tmp_path)
    assert train_reranker(training, validation, config, tmp_path).steps == 4


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(OptionError, match="alpha"):
        replace(CONFIG, alpha=-0.1)
