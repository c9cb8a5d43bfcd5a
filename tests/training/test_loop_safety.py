"""What a training does beside its steps: precision, what is not finite, TensorBoard, a full disk, older runs."""

from __future__ import annotations

import builtins
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gaitsdk.errors import MissingDependencyError, OptionError, TrainingError
from gaitsdk_training.backbone import BackboneTraining, load_best, train_backbone
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.optimising import Optimising, check_precision
from gaitsdk_training.processes import Processes
from gaitsdk_training.reranker import ListSet, RerankerTraining, train_reranker

OPTIONS = {"channels": (8, 8, 16, 16), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 16, "strips": 4}
CONFIG = BackboneTraining(
    options=OPTIONS, p=3, k=2, frames=2, steps=6, lr=3e-3, log_every=1, validate_every=100, checkpoint_every=3,
    device="cpu",
)  # fmt: skip
CPU = Processes(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def people() -> SequenceDataset:
    rng = np.random.default_rng(5)
    patterns = rng.integers(0, 256, (4, 1, 64, 64), np.uint8)
    sequences = [patterns[i // 3] // 2 + rng.integers(0, 128, (3, 64, 64), np.uint8) for i in range(12)]
    return SequenceDataset(sequences, [f"{i // 3:03d}" for i in range(12)], ["nm-01"] * 12, ["000", "090", "180"] * 4)


def lists(seed: int) -> ListSet:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(20, 3, 8)).astype(np.float32)
    return ListSet.build(features, np.repeat([f"{i:03d}" for i in range(4)], 5), ["a"] * 20, ["000"] * 20, v=8)


RERANKER = RerankerTraining(
    width=16, heads=2, identities=2, sequences=2, steps=30, lr=3e-3, validate_every=15, checkpoint_every=15,
    log_every=1, k=4, device="cpu",
)  # fmt: skip


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_bf16_learns_in_float32_weights(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, gsam={"present": "identity"})
    halves = train_backbone(people(), replace(config, precision="bf16"), tmp_path / "bf16")
    train_backbone(people(), config, tmp_path / "fp32")
    losses, exact = ([line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("bf16", "fp32"))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert losses[0] == pytest.approx(exact[0], rel=0.02) and losses[0] != exact[0]
    weights = load_file(tmp_path / "bf16" / "checkpoint-0000040" / "model.safetensors")
    assert {value.dtype for key, value in weights.items() if "num_batches" not in key} == {torch.float32}
    memory = load_file(tmp_path / "bf16" / "checkpoint-0000040" / "memory.safetensors")
    assert memory["gaitmpl.gsam.memory"].dtype == torch.float32
    assert "loss_scale" not in logged(tmp_path / "bf16")[0]
    assert {value.dtype for value in halves.model.parameters()} == {torch.float32}


def test_losses_get_float32_whatever_the_network_computes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, torch.dtype, bool]] = []

    from gaitsdk_training import objective

    original = objective.Objective.forward

    def watch(self: Any, features: torch.Tensor, logits: torch.Tensor, *more: Any) -> Any:
        seen.append((features.dtype, logits.dtype, torch.is_autocast_enabled("cpu")))
        return original(self, features, logits, *more)

    monkeypatch.setattr(objective.Objective, "forward", watch)
    train_backbone(people(), replace(CONFIG, precision="bf16", steps=1), tmp_path)
    assert seen == [(torch.float32, torch.float32, False)]


@pytest.mark.parametrize("method", ["cargait", "classifier"])
def test_the_reranker_in_bf16(method: str, tmp_path: Path) -> None:
    results = [
        train_reranker(lists(1), lists(2), replace(RERANKER, method=method, precision=each), tmp_path / each)
        for each in ("bf16", "fp32")
    ]
    assert np.isfinite([results[0].loss, results[0].rank1]).all()
    losses, exact = ([line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("bf16", "fp32"))
    assert losses == pytest.approx(exact, rel=0.02) and losses != exact
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert {value.dtype for value in results[0].model.parameters()} == {torch.float32}


def test_fp16_on_a_cpu_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"precision: fp16 trains on GPUs only.*use bf16"):
        train_backbone(people(), replace(CONFIG, precision="fp16"), tmp_path / "run")
    with pytest.raises(OptionError, match=r"precision: fp16 trains on GPUs only"):
        train_reranker(lists(1), lists(2), replace(RERANKER, precision="fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for config in (BackboneTraining, RerankerTraining):
        with pytest.raises(OptionError, match="fp8"):
            config(precision="fp8")


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(OptionError, match=r"does not compute in bf16.*use fp16"):
        check_precision("bf16", torch.device("cuda", 0))
    check_precision("fp16", torch.device("cuda", 0))


class Scaled(Optimising):
    """fp16 as on a GPU, with the scaler that works on a CPU too."""

    def __init__(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        super().__init__(model, optimiser, "fp32", 1.0, CPU)
        self._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


def test_an_overflow_in_fp16_leaves_one_step_out_and_lowers_the_scale() -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimising = Scaled(model, torch.optim.SGD(model.parameters(), 0.1))
    norms = [optimising.gradients((model.weight * float("inf")).sum())]
    assert optimising.usable(norms[0]) and optimising.report(norms[0]) == {"gradient_norm": None, "loss_scale": 8.0}
    optimising.step()
    assert torch.equal(model.weight, before) and optimising.scaler_state()["scale"] == 4.0
    again = Scaled(model, torch.optim.SGD(model.parameters(), 0.1))
    again.load_scaler_state(json.loads(json.dumps(optimising.scaler_state())))  # as a checkpoint keeps it
    assert again.scaler_state() == optimising.scaler_state()
    norm = again.gradients(3.0 * model.weight.sum())
    assert norm == pytest.approx(3.0 * 2**0.5)  # of the true gradient, whatever the scale
    again.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.1 / 2**0.5)  # clipped to 1
    for _ in range(3):
        assert again.usable(float("inf")) == (again.scaler_state()["scale"] >= 1.0)
        again.gradients((model.weight * float("inf")).sum())
        again.step()
    assert not again.usable(float("inf"))


def poisoned(monkeypatch: pytest.MonkeyPatch, step: int, rows: list[int], value: float = float("nan")) -> None:
    """From this step on, these rows of the features are not finite."""
    from gaitsdk.models.gaitbase import GaitBase

    original, calls = GaitBase.extract, [0]

    def extract(self: GaitBase, x: torch.Tensor) -> torch.Tensor:
        features = original(self, x)
        calls[0] += self.training
        if self.training and calls[0] >= step:
            features = features.clone()
            features[rows] = value
        return features

    monkeypatch.setattr(GaitBase, "extract", extract)


def test_features_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gaitsdk_training.data import PxKSampler

    poisoned(monkeypatch, 5, [1, 4])
    with pytest.raises(TrainingError, match=r"step 5: the features are not finite") as caught:
        train_backbone(people(), CONFIG, tmp_path)
    data = people()
    chosen = PxKSampler(data.labels, 3, 2, CONFIG.seed).batch(4)[[1, 4]]
    names = [f"{data.identities[i]}/nm-01/{data.views[i]}" for i in chosen]
    assert f"a batch with {', '.join(names)};" in str(caught.value) and "checkpoint-0000003" in str(caught.value)
    assert logged(tmp_path)[-1] == {"step": 5, "stopped": "the features are not finite", "batch": names}
    monkeypatch.undo()
    assert train_backbone(people(), CONFIG, tmp_path).steps == 6  # the checkpoint is good
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert not any("stopped" in line for line in logged(tmp_path))


def test_a_loss_or_gradient_that_is_not_finite_names_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gaitsdk_training import backbone

    def wild(self: Any, features: torch.Tensor, *more: Any) -> Any:
        return features.sum() * torch.tensor(3e38) * 3e38, {}

    def steep(self: Any, features: torch.Tensor, *more: Any) -> Any:
        return (features - features.detach()).abs().clamp_min(0.0).pow(0.25).sum(), {}

    for name, loss in (("loss", wild), ("gradient norm", steep)):
        monkeypatch.setattr(backbone.Objective, "forward", loss)
        with pytest.raises(TrainingError, match=rf"step 1: the {name} is not finite.*no checkpoint was written yet"):
            train_backbone(people(), CONFIG, tmp_path / name)
        (line,) = logged(tmp_path / name)
        assert line["stopped"] == f"the {name} is not finite" and len(line["batch"]) == 6
        assert all(len(each.split("/")) == 3 for each in line["batch"])


def test_the_reranker_names_its_probes(tmp_path: Path) -> None:
    training = lists(1)
    training.features[:] = np.nan
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite; got a batch with probe \d+ of 00\d"):
        train_reranker(training, lists(2), RERANKER, tmp_path)
    assert len(logged(tmp_path)[-1]["batch"]) == 4


FULL = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
import test_loop_safety as t
def limit(share, report):
    if report["step"] == 4:  # after the checkpoint of step 3: no file may grow beyond this any more
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    t.train_backbone(t.people(), t.CONFIG, Path({out!r}), progress=limit)
except t.TrainingError as error:
    sys.exit(f"typed: {{error}}")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files by setrlimit")
@pytest.mark.parametrize(("size", "named"), [(4096, "checkpoint-0000006"), (2000, "best|checkpoint-0000006|log.jsonl")])
def test_a_full_disk_leaves_the_last_checkpoint(size: int, named: str, tmp_path: Path) -> None:
    """A real refusal of the system to write: EFBIG, as ENOSPC comes from a full disk."""
    out = tmp_path / "run"
    code = FULL.format(folder=str(Path(__file__).parent), out=str(out), limit=size)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == 1 and "typed: " in ended.stderr, ended.stderr
    assert re.search(rf"run/({named}): the run's folder cannot be written", ended.stderr), ended.stderr
    assert "checkpoint-0000003 is whole" in ended.stderr and "make room on that disk" in ended.stderr
    assert sorted(each.name for each in out.glob("*check*")) == ["checkpoint-0000003"]
    assert not [each.name for each in out.iterdir() if each.name.startswith(".")]  # nothing half done is left
    resumed = train_backbone(people(), CONFIG, out)
    straight = train_backbone(people(), CONFIG, tmp_path / "straight")
    for key, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=1e-6, atol=1e-6)
    assert [line["step"] for line in logged(out)] == [1, 2, 3, 4, 5, 6]


def test_a_replacement_that_was_cut_off_is_undone(tmp_path: Path) -> None:
    """Killed between the old folder's going aside and the new one's coming: the old one comes back."""
    train_backbone(people(), CONFIG, tmp_path)
    for name in ("checkpoint-0000006", "best"):
        (tmp_path / name).rename(tmp_path / f".{name}.old")
    assert train_backbone(people(), replace(CONFIG, steps=8), tmp_path).steps == 8
    assert load_best(tmp_path) and not list(tmp_path.glob(".*.old"))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train_backbone(people(), replace(CONFIG, steps=3), tmp_path)
    for name in ("model.safetensors", "optimiser.pt", "state.json"):
        path = tmp_path / "checkpoint-0000003" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(TrainingError, match=r"checkpoint-0000003: the checkpoint cannot be read"):
            train_backbone(people(), CONFIG, tmp_path)
        path.write_bytes(whole)


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    train_backbone(people(), replace(CONFIG, steps=3), tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    for name in ("precision", "tensorboard"):
        del older[name]
    path.write_text(json.dumps(older))
    with pytest.raises(OptionError, match="precision='bf16'"):
        train_backbone(people(), replace(CONFIG, precision="bf16"), tmp_path)
    assert train_backbone(people(), CONFIG, tmp_path).steps == 6


def test_the_log_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    run = Run(tmp_path, {}, resume=True)
    run.begin()
    run.log(step=0, validation_loss=1.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 0, "lo')
    run.save(0, {"model": {"a": torch.zeros(1)}}, {}, {})
    Run(tmp_path, {}, resume=True).begin()
    assert logged(tmp_path) == [{"step": 0, "validation_loss": 1.0}]


def test_the_share_of_time_waiting_is_told(tmp_path: Path) -> None:
    result = train_backbone(people(), replace(CONFIG, workers=0), tmp_path)
    total = sum(1 for _ in logged(tmp_path))
    assert total == 6 and 0.0 < result.waited < 1.0
    assert train_backbone(people(), CONFIG, tmp_path).waited == 0.0  # nothing was left to do


def scalars(folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    return {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_shows_what_the_log_says_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = replace(CONFIG, tensorboard=True, steps=7, validate_every=3)

    def stop(share: float, report: Mapping[str, Any]) -> None:
        if report["step"] == 5:
            raise KeyboardInterrupt  # after the checkpoint of step 3: steps 4 and 5 come again

    with pytest.raises(KeyboardInterrupt):
        train_backbone(people(), config, tmp_path, progress=stop)
    train_backbone(people(), config, tmp_path)
    shown, lines = scalars(tmp_path), [line for line in logged(tmp_path) if "loss" in line]
    assert {"loss", "triplet", "cross_entropy", "accuracy", "gradient_norm", "lr"} <= shown.keys()
    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [value for _, value in shown["loss"]] == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    train_reranker(lists(1), lists(2), replace(RERANKER, steps=4, tensorboard=True), tmp_path / "reranker")
    shown = scalars(tmp_path / "reranker")
    assert len(shown["ranking"]) == 4 and shown["validation_loss"][0][0] == 0


def test_tensorboard_that_is_missing_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return original(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [each for each in sys.modules if each.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        train_backbone(people(), replace(CONFIG, tensorboard=True), tmp_path / "run")
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        train_reranker(lists(1), lists(2), replace(RERANKER, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
