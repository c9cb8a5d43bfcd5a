"""`gaitsdk import-opengait`: the bundle that it writes, the re-rankers that it takes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gaitsdk import cli, synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.models import CarGait, GaitModel, create

SMALL: dict[str, Any] = {"channels": (4, 6, 8, 10), "dims": 12, "num_classes": 5}


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAITSDK_GALLERY", str(tmp_path / "people.db"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> Outcome:
        try:
            cli.main([str(each) for each in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def original() -> GaitModel:
    torch.manual_seed(0)
    model = create("gaitbase", **SMALL)
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path: Path, original: GaitModel) -> Path:
    """As a training run leaves it: with the optimiser, from data-parallel training."""
    state = {f"module.{key}": value for key, value in original.state_dict().items()}
    path = tmp_path / "GaitBase-60000.pt"
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "iteration": 60000}, path)
    return path


def _cargait(dims: int = 12, **options: Any) -> CarGait:
    torch.manual_seed(1)
    model = CarGait(dims, **options)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    return model.eval()


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --------------------------------------------------------------------------------------------------------- the bundle
def test_the_bundle_gives_the_checkpoints_features(run: Any, checkpoint: Path, original: GaitModel) -> None:
    done = run("import-opengait", checkpoint, "--out", "mine.gait", "--licence", "CC-BY-NC-4.0", "--json")
    assert done.code == 0 and done.err == "", done.err
    report = json.loads(done.out)
    bundle = Bundle.load("mine.gait")
    assert report["architecture"] == "gaitbase" and report["model"] == bundle.fingerprint
    assert (report["strips"], report["dims"], report["reranker"], report["k"]) == (16, 12, None, 0)
    assert bundle.manifest.architecture.options["num_classes"] is None
    assert bundle.manifest.licence == report["licence"] == "CC-BY-NC-4.0"
    x = torch.rand(2, 5, 64, 44)
    with torch.no_grad():
        assert torch.equal(bundle.build_backbone()(x), original(x))


def test_the_manifest_says_where_it_came_from(run: Any, checkpoint: Path) -> None:
    assert run("import-opengait", checkpoint, "--out", "mine.gait").code == 0
    manifest = Bundle.load("mine.gait").manifest
    source = manifest.training["imported_from"]
    assert source["file"] == "GaitBase-60000.pt" and source["embedding"] == manifest.embedding == "fc"
    assert source["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert source["input_size"] == [64, 44] and source["input_size_told"] is False
    assert "academic use only" in source["licence"] and "academic use only" in manifest.licence


def test_what_a_checkpoint_cannot_tell_is_told(run: Any, checkpoint: Path) -> None:
    done = run(
        "import-opengait", checkpoint, "--out", "mine.gait", "--embedding", "bnneck", "--input-size", "128x88", "--json"
    )
    assert done.code == 0, done.err
    bundle: Any = Bundle.load("mine.gait")
    assert bundle.manifest.embedding == "bnneck" and (bundle.manifest.input.size, bundle.manifest.input.cut) == (
        128,
        20,
    )
    model = bundle.build_backbone()
    assert model.input_size == (128, 88)
    torch.testing.assert_close(model(torch.rand(1, 2, 128, 88)).norm(dim=-1), torch.ones(1, 16))


def test_the_assumed_size_is_said_where_another_is_published(run: Any, tmp_path: Path) -> None:
    torch.save(create("gln", tag="tiny").state_dict(), tmp_path / "gln.pt")
    done = run("import-opengait", "gln.pt", "--out", "mine.gait")
    assert done.code == 0 and "64x44 is assumed" in done.err and "casiab" in done.err, done.err
    done = run("import-opengait", "gln.pt", "--out", "large.gait", "--input-size", "128x88")
    assert done.code == 0 and "assumed" not in done.err
    assert Bundle.load("large.gait").size == 128


def test_people_see_a_summary(run: Any, checkpoint: Path) -> None:
    done = run("import-opengait", checkpoint, "--out", "mine[red].gait")
    assert done.code == 0 and "reading" in done.err and "writing mine[red].gait" in done.err
    for shown in ("mine[red].gait", "gaitbase", "16 strips of 12 (fc)", "64x44", "none", "academic use only"):
        assert shown in done.out, shown


def test_the_bundle_is_of_use(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    save_file(_weights(_cargait()), tmp_path / "cargait.safetensors")
    assert run("import-opengait", checkpoint, "--out", "mine.gait", "--reranker", "cargait.safetensors").code == 0
    for person in (1, 2):
        np.save(tmp_path / f"{person}.npy", synthetic.sequence(person))
        assert run("enroll", f"person{person}", f"{person}.npy", "--bundle", "mine.gait").code == 0
    done = run("identify", "1.npy", "--bundle", "mine.gait", "--json")
    assert done.code == 0, done.err
    (eager,) = json.loads(done.out)
    assert (eager["identity"], eager["reranker"], eager["runtime"]) == ("person1", "cargait", "torch")
    assert run("export", "mine.gait", "--to", "onnx", "--no-verify").code == 0  # compared by the answers below
    done = run("identify", "1.npy", "--bundle", "mine.gait", "--runtime", "onnx", "--json")
    (compiled,) = json.loads(done.out)
    assert compiled["runtime"] == "onnx"
    for a, b in zip(eager["candidates"], compiled["candidates"], strict=True):
        assert a["identity"] == b["identity"] and a["distance"] == pytest.approx(b["distance"], abs=1e-4)


def test_as_a_command(tmp_path: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "gaitsdk.cli", "import-opengait", str(checkpoint), "--out", "mine.gait", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == Bundle.load(tmp_path / "mine.gait").fingerprint
    shown = subprocess.run([*command[:3], "import-opengait", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--reranker" in shown.stdout


# --------------------------------------------------------------------------------------------------------- re-rankers
@pytest.fixture
def trained(tmp_path: Path, original: GaitModel) -> Path:
    """The bundle of a re-ranker's training run on another backbone, trained.gait."""
    other = create("gaitbase", **SMALL).eval()
    Bundle.create(tmp_path / "trained.gait", backbone=other, reranker=_cargait(width=16, heads=2), k=7)
    return tmp_path / "trained.gait"


def test_reranker_of_a_bundle(run: Any, checkpoint: Path, trained: Path) -> None:
    done = run("import-opengait", checkpoint, "--out", "mine.gait", "--reranker", trained, "--json")
    assert done.code == 0, done.err
    report, bundle = json.loads(done.out), Bundle.load("mine.gait")
    assert (report["reranker"], report["k"]) == ("cargait", 7)
    assert any("features of another model" in note for note in report["notes"])
    assert bundle.manifest.training["reranker"]["trained_on"] == Bundle.load(trained).fingerprint
    reranker = bundle.build_reranker()
    assert reranker is not None and _same(reranker, _cargait(width=16, heads=2))


def test_a_reranker_trained_on_the_same_model_needs_no_warning(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    assert run("import-opengait", checkpoint, "--out", "first.gait").code == 0
    backbone = Bundle.load("first.gait").build_backbone()
    (tmp_path / "run").mkdir()
    Bundle.create(tmp_path / "run/model.gait", backbone=backbone, reranker=_cargait(), k=5)
    done = run("import-opengait", checkpoint, "--out", "mine.gait", "--reranker", "run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["notes"] == [] and json.loads(done.out)["k"] == 5


def test_reranker_of_a_run_that_wrote_no_bundle_yet(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    model = _cargait(width=16, heads=4, num_classes=9)
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    save_file(_weights(model), best / "model.safetensors")
    (best / "state.json").write_text(json.dumps({"options": model.options, "loss": 0.1}))
    for index, given in enumerate(("run", "run/best", "run/best/model.safetensors")):
        done = run("import-opengait", checkpoint, "--out", f"mine{index}.gait", "--reranker", given, "--json")
        assert done.code == 0 and json.loads(done.out)["notes"] == [], (done.out, done.err)
        manifest = Bundle.load(f"mine{index}.gait").manifest
        assert manifest.reranker is not None
        assert manifest.reranker.options == {"dims": 12, "width": 16, "heads": 4, "num_classes": None}
        assert manifest.k == 10


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_reranker_of_a_bare_file_assumes_the_papers_heads_and_says_so(
    run: Any, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    weights = _weights(_cargait(width=16))
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    done = run("import-opengait", checkpoint, "--out", "mine.gait", "--reranker", name)
    assert done.code == 0 and "8 are assumed" in done.err, done.err
    reranker: Any = Bundle.load("mine.gait").build_reranker()
    assert reranker.heads == 8 and _same(reranker, _cargait(width=16))


def test_rerankers_that_do_not_fit_are_refused(run: Any, checkpoint: Path, tmp_path: Path, trained: Path) -> None:
    strips = create("gaitbase", **{**SMALL, "strips": 8}).eval()
    Bundle.create(tmp_path / "strips.gait", backbone=strips, reranker=_cargait())
    Bundle.create(tmp_path / "bare.gait", backbone=strips)
    save_file(_weights(_cargait(dims=32)), tmp_path / "dims.safetensors")
    save_file({**_weights(_cargait()), "more": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    damaged = trained / "reranker.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for given, says in {
        "strips.gait": "one for 8 strips of 12; expected 16 strips of 12",
        "dims.safetensors": "one for 32 dimensions; expected 16 strips of 12",
        "bare.gait": "has no re-ranker",
        "more.safetensors": "more",
        "other.safetensors": "it is no CarGait",
        "nowhere": "there is no re-ranker",
        str(trained): "changed after the bundle was written",
        str(checkpoint): "it is no CarGait",
    }.items():
        done = run("import-opengait", checkpoint, "--out", "mine.gait", "--reranker", given)
        assert done.code == 1 and says in done.err, (given, done.err)
        assert not (tmp_path / "mine.gait").exists()


# ----------------------------------------------------------------------------------------------------------- refusals
class Canary:
    """Pickles as a call that creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("as_reranker", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "pkl"])
def test_malicious_files_run_nothing(
    run: Any, checkpoint: Path, original: GaitModel, tmp_path: Path, suffix: str, as_reranker: bool
) -> None:
    evil = tmp_path / f"evil.{suffix}"
    torch.save({"model": original.state_dict(), "optimizer": Canary(tmp_path / "canary")}, evil)
    given = [checkpoint, "--reranker", evil] if as_reranker else [evil]
    done = run("import-opengait", *given, "--out", "mine.gait")
    assert done.code == 1 and "was not run" in done.err and "mkdir" in done.err
    assert not (tmp_path / "canary").exists() and not (tmp_path / "mine.gait").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere.pt", "--out", "mine.gait"], 1, "no such file"),
        ([".", "--out", "mine.gait"], 1, "no such file"),
        (["text.pt", "--out", "mine.gait"], 1, "text.pt"),
        (["strange.pt", "--out", "mine.gait"], 1, "no known architecture"),
        (["part.pt", "--out", "mine.gait"], 1, "most resembles 'gaitbase' with channels=(4, 6, 8, 10)"),
        (["CHECKPOINT"], 2, "--out"),
        (["CHECKPOINT", "--out", "mine"], 2, "add .gait"),
        (["CHECKPOINT", "--out", "mine.gait", "--embedding", "bneck"], 2, "fc or bnneck"),
        (["CHECKPOINT", "--out", "mine.gait", "--input-size", "64"], 2, "HxW"),
        (["CHECKPOINT", "--out", "mine.gait", "--input-size", "44x64"], 2, "height first"),
        (["CHECKPOINT", "--out", "mine.gait", "--input-size", "64x45"], 2, "even difference"),
        (["CHECKPOINT", "--out", "mine.gait", "--input-size", "60x44"], 2, "15 rows"),
        (["CHECKPOINT", "--out", "mine.gait", "--input-size", "0x0"], 2, "--input-size"),
        (["set.pt", "--out", "mine.gait", "--embedding", "bnneck"], 2, "no BN neck"),
        (["CHECKPOINT", "--out", "CHECKPOINT/mine.gait"], 1, "mine.gait"),
    ],
)
def test_bad_usage_is_2_and_failure_is_1(
    run: Any, checkpoint: Path, original: GaitModel, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"fc1.weight": torch.zeros(2, 2)}, tmp_path / "strange.pt")
    torch.save(create("gaitset", tag="tiny").state_dict(), tmp_path / "set.pt")
    part = {key: value for key, value in original.state_dict().items() if key != "FCs.fc_bin"}
    torch.save(part, tmp_path / "part.pt")
    before = sorted(tmp_path.iterdir())
    done = run("import-opengait", *[each.replace("CHECKPOINT", str(checkpoint)) for each in arguments])
    assert done.code == code, (done.out, done.err)
    assert says in done.err.replace("\n", " ") and "Traceback" not in done.err, done.err
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


def test_nothing_is_overwritten(run: Any, checkpoint: Path, tmp_path: Path, trained: Path) -> None:
    (tmp_path / "file.gait").write_text("mine")
    (tmp_path / "folder.gait").mkdir()
    manifest = (trained / "manifest.json").read_bytes()
    for name in ("trained.gait", "file.gait", "folder.gait"):
        done = run("import-opengait", checkpoint, "--out", name)
        assert done.code == 1 and "nothing is overwritten" in done.err
    assert (trained / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "file.gait").read_text() == "mine" and not any((tmp_path / "folder.gait").iterdir())
