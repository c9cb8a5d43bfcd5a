"""The training loop of backbones, on a tiny network and six identities."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gaitsdk.errors import OptionError, TrainingError
from gaitsdk.models import create
from gaitsdk_training.backbone import BackboneTraining, load_best, train_backbone
from gaitsdk_training.data import Augmentation, SequenceDataset
from gaitsdk_training.features import cross_view_rank1, embed_dataset
from gaitsdk_training.schedule import Budget, rate_factor

TINY = {"channels": (8, 8, 16, 16), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 16, "strips": 4}
CONFIG = BackboneTraining(
    options=TINY, p=4, k=4, frames=2, steps=60, lr=3e-3, validate_every=30, checkpoint_every=20, device="cpu"
)


def people(identities: range) -> SequenceDataset:
    """Who it is shows in the lower half, faintly; the upper half changes from walk to walk."""
    rng = np.random.default_rng(11)
    patterns = rng.random((40, 8, 16)) < 0.5
    sequences, names, types, views = [], [], [], []
    for identity in identities:
        for kind in ("nm-01", "nm-02", "nm-03"):
            for view in ("000", "090"):
                blocks = np.zeros((16, 16))
                blocks[:8] = rng.random((8, 16)) < 0.5
                blocks[8:] = 0.15 * patterns[identity] + 0.1 * rng.random((8, 16))
                frame = np.kron(blocks, np.ones((4, 4)))
                sequences.append((255 * np.stack([frame, np.roll(frame, 1, 1)])).astype(np.uint8))
                names.append(f"{identity:03d}")
                types.append(kind)
                views.append(view)
    return SequenceDataset(sequences, names, types, views)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return people(range(6))


@pytest.fixture(scope="module")
def held_out() -> SequenceDataset:
    return people(range(20, 28))


@pytest.fixture(scope="module")
def trained(data: SequenceDataset, held_out: SequenceDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_backbone(data, CONFIG, folder, validation=held_out)
    return folder


def test_training_finds_people_that_the_untrained_network_does_not(
    trained: Path, data: SequenceDataset, held_out: SequenceDataset
) -> None:
    torch.manual_seed(0)
    untrained = create("gaitbase", **TINY)
    model = load_best(trained)
    for people_ in (data, held_out):
        before = cross_view_rank1(embed_dataset(untrained, people_), people_)
        after = cross_view_rank1(embed_dataset(model, people_), people_)
        assert after > before + 20.0, (before, after)


def test_a_run_leaves_log_config_checkpoint_and_best(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [10, 20, 30, 40, 50, 60]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {"triplet", "cross_entropy", "active_share", "lr", "gradient_norm"} <= steps[0].keys()
    assert [line["step"] for line in lines if "validation_rank1" in line] == [30, 60]
    assert [each.name for each in trained.glob("checkpoint-*")] == ["checkpoint-0000060"]
    assert json.loads((trained / "config.json").read_text())["lr"] == 3e-3
    best = json.loads((trained / "best" / "state.json").read_text())
    assert best["rank1"] == max(line["validation_rank1"] for line in lines if "validation_rank1" in line)


def test_an_interrupted_run_gives_the_same_weights(
    trained: Path, data: SequenceDataset, held_out: SequenceDataset, tmp_path: Path
) -> None:
    def stop(share: float, report: dict[str, object]) -> None:
        if report["step"] == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_backbone(data, CONFIG, tmp_path, validation=held_out, progress=stop)
    result = train_backbone(data, CONFIG, tmp_path, validation=held_out)
    again = torch.load(tmp_path / "checkpoint-0000060" / "optimiser.pt", weights_only=True)
    once = torch.load(trained / "checkpoint-0000060" / "optimiser.pt", weights_only=True)
    assert result.steps == 60 and again["state"].keys() == once["state"].keys()
    for name, value in load_best(trained).state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # nothing is logged twice


def test_another_run_in_the_folder_is_refused(trained: Path, data: SequenceDataset) -> None:
    with pytest.raises(OptionError, match="lr"):
        train_backbone(data, replace(CONFIG, lr=1e-4), trained)
    with pytest.raises(OptionError, match="holds a run already"):
        train_backbone(data, CONFIG, trained, resume=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    data: SequenceDataset, tmp_path: Path
) -> None:
    calm = replace(CONFIG, steps=4, checkpoint_every=2, validate_every=100)
    train_backbone(data, calm, tmp_path)
    damaged = people(range(6))
    wild = replace(calm, steps=8)
    # Weights that overflow: the next forward gives inf - inf.
    path = tmp_path / "checkpoint-0000004" / "model.safetensors"
    weights = load_file(path)
    weights["FCs.fc_bin"] = torch.full_like(weights["FCs.fc_bin"], float("inf"))
    save_file(weights, path)
    with pytest.raises(TrainingError, match=r"step 5.*not finite.*checkpoint-0000004"):
        train_backbone(damaged, wild, tmp_path)
    assert (tmp_path / "checkpoint-0000004" / "state.json").exists()


def test_options_of_the_loop(data: SequenceDataset, tmp_path: Path) -> None:
    """SGD, one cycle, averaged weights, augmentation, ordered frames, no classifier, no validation data, briefly."""
    config = BackboneTraining(
        options=TINY, p=3, k=2, frames=2, sampling="fixed_ordered", steps=6, optimiser="sgd", lr=0.01,
        schedule="onecycle", cross_entropy_weight=0.0, ema=0.9, augmentation=Augmentation(flip=0.5, affine=0.5),
        clip_norm=None, validate_every=4, checkpoint_every=3, device="cpu",
    )  # fmt: skip
    result = train_backbone(data, config, tmp_path)
    assert result.rank1 is None and result.step == 6 and result.model.options["num_classes"] is None
    assert not result.model.training
    assert (tmp_path / "checkpoint-0000006" / "ema.safetensors").exists()
    features = embed_dataset(result.model, data)
    assert features.shape == (36, 4, 16) and np.isfinite(features).all()


def test_the_time_budget_ends_a_run(data: SequenceDataset, tmp_path: Path) -> None:
    result = train_backbone(data, replace(CONFIG, steps=10**6, max_minutes=1.0 / 60.0), tmp_path)
    assert 1 <= result.steps < 10**4 and result.minutes < 0.5
    rates = [json.loads(line)["lr"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert not rates or rates[-1] < CONFIG.lr  # the schedule follows the time


def test_impossible_configurations_are_refused() -> None:
    for wrong in (
        {"optimiser": "lion"},
        {"schedule": "steps"},
        {"p": 0},
        {"lr": 0.0},
        {"ema": 1.0},
        {"sampling": "all"},
    ):
        with pytest.raises(OptionError):
            BackboneTraining(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "linear", "constant"])
def test_schedules_rise_to_the_peak_and_fall(schedule: str) -> None:
    factors = [rate_factor(schedule, i / 100, 0.2, 0.01) for i in range(101)]
    assert max(factors) == pytest.approx(1.0) and factors[20] == pytest.approx(1.0)
    assert (np.diff(factors[1:21]) > 0).all()
    if schedule == "constant":
        assert set(factors[20:]) == {1.0}
    else:
        assert (np.diff(factors[20:]) < 0).all()
        assert factors[-1] == pytest.approx(0.01)


def test_budget_counts_steps_and_the_time_of_earlier_parts() -> None:
    assert Budget(200, None).progress(50) == 0.25
    assert Budget(200, 1.0, elapsed=30.0).progress(50) == pytest.approx(0.5, abs=0.01)
    assert Budget(200, 1.0, elapsed=61.0).progress(0) >= 1.0


def test_cross_view_rank1_by_hand() -> None:
    """Two people, two views, two types: one feature is put nearer to the wrong person of the other view."""
    values = {("a", "nm-01", "0"): 0.0, ("a", "nm-02", "9"): 0.1, ("b", "nm-01", "0"): 1.0, ("b", "nm-02", "9"): 0.4}
    names, types, views = zip(*values, strict=True)
    dataset = SequenceDataset(np.zeros((4, 1, 64, 64), np.uint8), names, types, views)
    features = np.array(list(values.values()), np.float32).reshape(4, 1, 1)
    # view 0 -> 9: a to 0.1 (right), b (1.0) to 0.4 (right); view 9 -> 0: a to 0.0 (right), b (0.4) to 0.0 (wrong)
    assert cross_view_rank1(features, dataset) == pytest.approx(75.0)
