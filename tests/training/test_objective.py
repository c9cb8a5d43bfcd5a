"""GaitMPL in the training loop: on every backbone, through kill -9, and with options that do not exist."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gaitsdk.errors import OptionError
from gaitsdk.models import create, list_models, model_class
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.objective import Objective

CONFIG = BackboneTraining(
    options={"channels": (8, 8, 16, 16), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 8, "strips": 4},
    p=3, k=2, frames=2, steps=40, lr=3e-3, log_every=1, validate_every=100, checkpoint_every=20, device="cpu",
    drpl={"weights": "softmax"}, gsam={"present": "identity", "fusion": "exponential"},
)  # fmt: skip


def people() -> SequenceDataset:
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, 256, (3, 64, 64), np.uint8) for _ in range(12)]
    return SequenceDataset(sequences, [f"{i // 3:03d}" for i in range(12)], ["nm-01"] * 12, ["000"] * 12)


@pytest.mark.parametrize("name", list_models())
def test_it_trains_every_backbone_strip_by_strip(name: str) -> None:
    torch.manual_seed(0)
    classes = {"num_classes": 2} if "num_classes" in model_class(name).Options.names() else {}
    model = create(name, tag="tiny", **classes)
    channels = () if model.input_channels == 1 else (model.input_channels,)
    x, labels = torch.rand(4, 6, *channels, *model.input_size), torch.tensor([0, 0, 1, 1])
    objective = Objective(CONFIG, 2, model.strips, model.dims)
    assert objective.gaitmpl is not None and objective.gaitmpl.gsam is not None
    objective.gaitmpl.gsam.initialise([(model.forward_sequences(list(x)), labels)])
    features, logits = model.forward_train(x)
    loss, report = objective(features, logits, labels, done=0.5)
    loss.backward()
    assert np.isfinite(list(report.values())).all() and {"triplet", "gsam", "fusion"} <= set(report)
    assert ("cross_entropy" in report) == bool(classes)
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
import test_objective as t
def stop(share, report):
    if report["step"] == 23:  # three steps after the checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
t.train_backbone(t.people(), t.CONFIG, Path({out!r}), progress=stop)
"""


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_kill_9_and_resume_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        straight = train_backbone(people(), CONFIG, tmp_path / "straight")
        code = KILLED.format(folder=str(Path(__file__).parent), out=str(tmp_path / "killed"))
        killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert max(losses(tmp_path / "killed")) == 23
        resumed = train_backbone(people(), CONFIG, tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    expected, found = losses(tmp_path / "straight"), losses(tmp_path / "killed")
    assert found.keys() == expected.keys() == set(range(1, 41))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, abs=1e-6, rel=1e-6), step
    for key, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=1e-6, atol=1e-6)


def test_the_memory_is_in_the_checkpoint(tmp_path: Path) -> None:
    train_backbone(people(), replace(CONFIG, steps=2, checkpoint_every=2), tmp_path)
    memory = load_file(tmp_path / "checkpoint-0000002" / "memory.safetensors")
    assert memory["gaitmpl.gsam.memory"].shape == (4, 4, 8) and bool(memory["gaitmpl.gsam.initialised"])


def test_loading_ahead_changes_nothing(tmp_path: Path) -> None:
    short = replace(CONFIG, steps=6)
    runs = [train_backbone(people(), replace(short, workers=n), tmp_path / str(n)) for n in (0, 3)]
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("wrong", [{"drpl": {"sharpness": 2}}, {"gsam": {"tau": 1}}, {"gsam": {"fusion": "never"}}])
def test_unknown_options_are_refused_before_anything_is_written(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"BackboneTraining\.(drpl|gsam)|never"):
        train_backbone(people(), replace(CONFIG, **wrong), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
