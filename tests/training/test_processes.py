"""Two processes on gloo train as one does: losses, weights, resuming, and ending together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gaitsdk import Bundle, synthetic
from gaitsdk.errors import OptionError
from gaitsdk.models import GaitModel, create
from gaitsdk_training import processes
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.batch_norm import SynchronisedBatchNorm, convert
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.losses import cross_entropy, triplet_batch_all
from gaitsdk_training.processes import Processes, process_device
from gaitsdk_training.reranker import ListSet, RerankerTraining, train_reranker

# SGD: Adam turns the rounding of a gradient that is 0 into a step of the whole learning rate.
SETTINGS = BackboneTraining(
    p=3, k=2, frames=3, steps=5, optimiser="sgd", lr=0.002, log_every=1, validate_every=3, checkpoint_every=3,
    device="cpu",
)  # fmt: skip
BACKBONES = {
    "gaitset": replace(
        SETTINGS, model="gaitset", options={"channels": [4, 6, 8], "dims": 12}, drpl={}, lr=0.5,
        gsam={"present": "identity", "element": "random"},
    ),
    "gaitbase": replace(SETTINGS, options={"channels": [4, 6, 8, 10], "dims": 12}, ema=0.5),
}  # fmt: skip
RERANKERS = {
    method: RerankerTraining(
        method=method, width=16, heads=2, identities=3, sequences=2, negatives=2, steps=4, lr=1e-3, validate_every=2,
        checkpoint_every=2, log_every=1, k=4, reduction=reduction, device="cpu",
    )
    for method, reduction in (("cargait", "sum"), ("classifier", "mean"))
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def people(seed: int = 5) -> SequenceDataset:
    """Each sequence has a coarse pattern of its own: the features of plain noise are nearly the same, their distances
    mostly rounding."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((12, 8, 8)) < 0.5, np.ones((8, 8)))
    sequences = [np.stack([np.roll(each, t, 1) for t in range(4)]).astype(np.uint8) * 255 for each in coarse]
    return SequenceDataset(sequences, [f"{i // 3:03d}" for i in range(12)], ["nm-01"] * 12, ["000", "090", "180"] * 4)


def lists(seed: int) -> ListSet:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(30, 4, 8)).astype(np.float32)
    return ListSet.build(features, np.repeat(np.arange(6), 5), ["nm-01"] * 30, ["000"] * 30, v=12)


def train_all(folder: Path) -> None:
    for name, config in BACKBONES.items():
        train_backbone(people(), config, folder / name, validation=people(6))
    for name, config in RERANKERS.items():
        train_reranker(lists(1), lists(2), config, folder / name)


# What each process runs: `joint` makes one process group for all trainings, as a caller may have done.
PROGRAM = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch, torch.distributed as dist
torch.set_num_threads(1)
import test_processes as t
out, rank = Path({out!r}), int(os.environ["RANK"])
{body}
"""


def start(body: str, out: Path, *, world: int = 2) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = PROGRAM.format(folder=str(Path(__file__).parent), out=str(out), body=body)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **meeting, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


def finish(running: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    try:
        said = [each.communicate(timeout=280)[0] for each in running]
    finally:
        for each in running:
            each.kill()
    return [(each.returncode, text) for each, text in zip(running, said, strict=True)]


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def one_gradient(model: GaitModel, group: Processes) -> dict[str, torch.Tensor]:
    """Loss, gradients and statistics of one step on a batch of 6, in float64."""
    rank, world = group.share
    torch.manual_seed(1)
    x, labels = torch.rand(6, 3, *model.input_size, dtype=torch.float64), torch.arange(6) % 3
    local, local_logits = model.forward_train(x[rank::world])
    features, logits = group.gather(local), group.gather(local_logits)
    loss = triplet_batch_all(features, labels) + cross_entropy(logits, labels) + group.mean(local.square().mean())
    loss.backward()
    group.add_gradients(model.parameters())
    gradients = {f"gradient of {name}": value.grad for name, value in model.named_parameters()}
    return {"loss": loss.detach(), **gradients, **model.state_dict()}


def gradients(out: Path, name: str, group: Processes) -> None:
    torch.manual_seed(0)
    model = create(name, channels=[4, 6, 8, 10], dims=12, num_classes=3).double().train()
    group.synchronise(model)
    found = one_gradient(model, group)
    if group.leads:
        save_file(found, out / f"{name}.safetensors")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of all runs, by one process and by two."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        # In float32 torch's own batch norm on a CPU rounds too roughly to compare with (features of DeepGaitV2 off by
        # 2e-3 of the largest, against 2e-6): here one process computes the sums as two do, in float64 (below) torch's.
        patch.setattr(Processes, "synchronise", lambda group, model: convert(model, lambda values: values, 1))
        train_all(alone)
    for name in ("gaitbase", "deepgaitv2"):
        gradients(alone, name, Processes(torch.device("cpu")))
    body = (
        "dist.init_process_group('gloo'); t.train_all(out); assert dist.is_initialized()\n"
        "for name in ('gaitbase', 'deepgaitv2'): t.gradients(out, name, t.Processes(torch.device('cpu'), rank, 2))"
    )
    for code, said in finish(start(body, together)):
        assert code == 0, said
    return alone, together


@pytest.mark.parametrize("name", [*BACKBONES, *RERANKERS])
def test_losses_and_weights_are_those_of_one_process(both: tuple[Path, Path], name: str) -> None:
    alone, together = (folder / name for folder in both)
    expected, found = logged(alone), logged(together)
    assert [line["step"] for line in found] == [line["step"] for line in expected]  # nothing is logged twice
    for line, other in zip(expected, found, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"minutes", "waited"}:
            # The norm of gradients, sums of which cancel in this noise, is less exact; in float64, below, all agree.
            tolerance = 1e-4 if key == "gradient_norm" else 1e-5
            assert other[key] == pytest.approx(line[key], rel=tolerance, abs=tolerance), (line["step"], key)
    last = f"checkpoint-{expected[-1]['step']:07d}"
    for each in sorted((alone / last).glob("*.safetensors")):
        weights, others = load_file(each), load_file(together / last / each.name)
        assert weights.keys() == others.keys()
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: key + text)
    assert json.loads((together / "config.json").read_text()) == json.loads((alone / "config.json").read_text())


@pytest.mark.parametrize("name", ["gaitbase", "deepgaitv2"])
def test_gradients_through_batch_norm_are_exact(both: tuple[Path, Path], name: str) -> None:
    expected, found = (load_file(folder / f"{name}.safetensors") for folder in both)
    assert expected.keys() == found.keys() and len(expected) > 50
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: key + text)


def test_training_moved_the_weights(both: tuple[Path, Path]) -> None:
    """Else the comparison would say nothing."""
    for name in BACKBONES:
        lines = [line for line in logged(both[0] / name) if "loss" in line]
        assert len(lines) == 5 and sum(line["lr"] * min(line["gradient_norm"], 10.0) for line in lines) > 0.01
    norms = load_file(both[1] / "gaitbase" / "checkpoint-0000005" / "model.safetensors")
    assert int(norms["BNNecks.bn1d.num_batches_tracked"]) == 5
    assert (norms["BNNecks.bn1d.running_var"] - 1.0).abs().max() > 0.1


def test_one_that_is_killed_ends_the_other_and_both_resume(tmp_path: Path) -> None:
    """Rank 1 dies by SIGKILL at step 4, rank 0 ends with the typed error; resumed, the run is as if uninterrupted."""
    train = "t.train_backbone(t.people(), t.BACKBONES['gaitset'], out, validation=t.people(6){more})"
    body = "kill = lambda share, report: rank == 1 and report['step'] == 4 and os.kill(os.getpid(), signal.SIGKILL)\n"
    first, second = finish(start(body + train.format(more=", progress=kill"), tmp_path / "run"))
    assert second[0] == -signal.SIGKILL
    assert first[0] == 1 and "another process of this run has ended" in first[1], first
    assert [each.name for each in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-0000003"]
    for code, said in finish(start(train.format(more=""), tmp_path / "run")):
        assert code == 0, said
    straight = train_backbone(people(), BACKBONES["gaitset"], tmp_path / "straight", validation=people(6))
    losses = [{x["step"]: x["loss"] for x in logged(tmp_path / name) if "loss" in x} for name in ("straight", "run")]
    assert losses[0].keys() == losses[1].keys() == set(range(1, 6))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-5)
    for key, value in load_file(tmp_path / "run" / "best" / "model.safetensors").items():
        torch.testing.assert_close(value, straight.model.state_dict()[key], rtol=1e-5, atol=1e-5)


def test_ctrl_c_and_errors_in_one_end_all(tmp_path: Path) -> None:
    """Ctrl-C in rank 1 stops both at the same step. Then rank 0 cannot write its checkpoint: a file is in the way."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".checkpoint-0000003").write_text("in the way")
    body = (
        "ask = lambda share, report: rank == 1 and report['step'] == 2 and os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: t.train_backbone(t.people(), t.BACKBONES['gaitbase'], out / 'stopped', progress=ask)\n"
        "except KeyboardInterrupt as stopped: print(type(stopped).__name__, stopped.step)\n"
        "t.train_backbone(t.people(), t.BACKBONES['gaitset'], out / 'full')"
    )
    (code, first), (other_code, second) = finish(start(body, tmp_path))
    for said in (first, second):
        assert "TrainingStopped 2" in said.splitlines(), said
    assert [each.name for each in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-0000002"]
    assert code == 1 and "TrainingError" in first and "checkpoint-0000003: the run's folder cannot be written" in first
    assert other_code == 1 and "another process of this run has ended" in second, second


def test_torchrun_trains_by_the_command_line(tmp_path: Path) -> None:
    synthetic.write_casiab(tmp_path / "tree", range(1, 7), types=("nm-01", "nm-02"), views=("036", "090"), frames=6)
    options = {"channels": [4, 6, 8], "dims": 8}
    (tmp_path / "c.json").write_text(json.dumps({"model": "gaitset", "options": options, "p": 2, "k": 2, "frames": 2}))
    verb = ["train", "backbone", "--data", "tree", "--out", "run", "--config", "c.json", "--steps", "4", "--json"]
    more = ["--validation", "0.34", "--device", "cpu", "--cache", "packed.bin"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "gaitsdk.cli", *verb, *more], cwd=tmp_path, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # of the first process alone
    report = json.loads(line)
    assert 1 <= report["steps"] <= 4 and 0.0 <= report["waiting_for_data_percent"] <= 100.0
    assert Bundle.load(tmp_path / "run" / "model.gait").manifest.architecture.name == "gaitset"


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    Processes(torch.device("cpu"), 0, 3).check_batch(12, "here")
    with pytest.raises(OptionError, match="here: the batch cannot be split evenly; got 12 rows over 5 processes"):
        Processes(torch.device("cpu"), 1, 5).check_batch(12, "here")


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "pick_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process_device("auto") == process_device("cuda") == torch.device("cuda:1")
    assert not processes.is_first()
    with pytest.raises(OptionError, match="several processes cannot train on one GPU"):
        process_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match="more processes than GPUs"):
        process_device("auto")


def test_missing_variables_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(processes.TrainingError, match=r"do not find each other.*RANK"):
        train_backbone(people(), BACKBONES["gaitset"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, ()), (nn.BatchNorm2d, (4, 3)), (nn.BatchNorm3d, (2, 2, 2))]
)
def test_batch_norm_alone_is_torchs(norm: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(5), nn.Tanh()).double()
    nn.init.normal_(model[0].weight, 1.0, 0.3)
    ours = nn.Sequential(norm(5), nn.Tanh()).double()
    ours.load_state_dict(model.state_dict())
    convert(ours, lambda values: values, 1)
    assert isinstance(ours[0], SynchronisedBatchNorm) and ours.state_dict().keys() == model.state_dict().keys()
    for _ in range(3):
        x = 3.0 + torch.randn(6, 5, *shape, dtype=torch.float64)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [network(each) for network, each in zip((model, ours), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0])
        weights = torch.randn_like(x)
        for each in outputs:
            (each * weights).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for first, second in zip(model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(second.grad, first.grad)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    torch.testing.assert_close(ours.eval()(x), model.eval()(x))


def test_batch_norm_stays_exact_where_the_mean_is_large() -> None:
    """Sums of squares in float32 would lose the variance altogether."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    convert(model, lambda values: values, 1)
    x = 4096.0 + torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    y = model(x).detach()
    assert y.std(dim=0).sub(1.0).abs().max() < 0.01 and y.mean(dim=0).abs().max() < 0.01
