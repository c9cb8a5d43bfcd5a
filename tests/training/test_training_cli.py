"""`gaitsdk train` and `gaitsdk evaluate`: one small chain from data to figures, and what bad input gives."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.errors import OptionError
from gaitsdk_training import cli
from gaitsdk_training.backbone import BackboneTraining
from gaitsdk_training.configuration import read_config
from gaitsdk_training.data import Augmentation, from_tree
from gaitsdk_training.evaluation import evaluate
from gaitsdk_training.evaluation.tree import evaluate_tree
from gaitsdk_training.features import embed_dataset
from gaitsdk_training.lists import build_lists
from gaitsdk_training.reranker import RerankerTraining

TINY = {"channels": [8, 8, 16, 16], "strides": [1, 2, 1, 1], "stem_stride": 2, "dims": 16, "strips": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not the user's, for the features that `evaluate` keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    types = ("nm-01", "nm-02", "nm-05", "bg-01", "cl-01")
    synthetic.write_casiab(root, range(1, 8), types=types, views=("036", "090"), frames=8)
    return root


@pytest.fixture(scope="module")
def partition(tree: Path) -> Path:
    path = tree.parent / f"{tree.name}-partition.json"
    train = ["001", "002", "003", "004", "005"]
    path.write_text(json.dumps({"TRAIN_SET": train, "TEST_SET": ["006", "007", "044"]}))
    return path


@pytest.fixture(scope="module")
def chain(tree: Path, partition: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with backbone and re-ranker, trained by the two verbs."""
    folder = tmp_path_factory.mktemp("chain")
    backbone = {"options": TINY, "p": 3, "k": 2, "frames": 3, "augmentation": {"flip": 0.5}, "validate_every": 4}
    (folder / "backbone.json").write_text(json.dumps(backbone))
    reranker = {"width": 16, "heads": 2, "identities": 3, "sequences": 2, "validate_every": 3, "k": 4}
    (folder / "reranker.json").write_text(json.dumps(reranker))
    shared = ["--data", tree, "--partition", partition, "--validation", "0.3", "--device", "cpu"]
    first = ["--config", folder / "backbone.json", "--steps", 6, "--out", folder / "one", "--licence", "CC0-1.0"]
    assert call("train", "backbone", *shared, *first) == 0
    second = ["--config", folder / "reranker.json", "--steps", 6, "--lr", "0.001", "--scope", "view_pair", "--v", "5"]
    base = ["--bundle", folder / "one" / "model.gait"]
    assert call("train", "reranker", *shared, *second, *base, "--out", folder / "two") == 0
    return folder


def call(*arguments: object) -> int:
    """The exit code of `gaitsdk ARGUMENTS`, with this package's verbs only: other packages are not at stake."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("gaitsdk.cli.entry_points", _own_verbs)
        patch.setenv("COLUMNS", "1000")  # messages on one line
        main([str(each) for each in arguments])
    code = exit_.value.code
    return 0 if code is None else int(code)


def _own_verbs(group: str) -> list[EntryPoint]:
    return [point for point in entry_points(group=group) if point.value.startswith("gaitsdk_training.")]


def test_the_chain_gives_bundles(chain: Path) -> None:
    first, second = Bundle.load(chain / "one" / "model.gait"), Bundle.load(chain / "two" / "model.gait")
    assert first.manifest.reranker is None and first.manifest.licence == second.manifest.licence == "CC0-1.0"
    assert second.manifest.reranker is not None and second.manifest.k == 4
    assert first.fingerprint == second.fingerprint  # the same backbone: no gallery is lost
    assert first.manifest.training["identities"] == 3 and second.manifest.training["reranker"]["lists"] > 0
    assert (chain / "one" / "log.jsonl").exists() and (chain / "two" / "best" / "model.safetensors").exists()


def test_evaluate_prints_and_writes_the_librarys_figures(
    chain: Path, tree: Path, partition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = chain / "two" / "model.gait"
    shared = ["evaluate", "--data", tree, "--bundle", bundle, "--partition", partition, "--runtime", "torch"]
    out = tmp_path / "figures.json"
    assert call(*shared, "--json", out) == 0
    assert capsys.readouterr().out == ""
    report: dict[str, Any] = json.loads(out.read_text())
    capsys.readouterr()
    assert call(*shared, "--json") == 0
    assert json.loads(capsys.readouterr().out) == report
    assert report["sequences"] == 2 * 5 * 2 and report["figures"]["probes"] == 2 * 3 * 2 and report["k"] == 4
    assert (report["runtime"], report["reranker"]) == ("torch", "cargait")
    assert report["missing"] == ["044"] and report["skipped"] == []

    data = from_tree(tree, identities=["006", "007"])
    features = embed_dataset(Bundle.load(bundle).build_backbone(), data)  # type: ignore[arg-type]
    plain = evaluate(features, data.identities, data.types, data.views)
    for key, value in plain.items():
        if key.startswith("rank1") and "same_view" not in key:
            assert report["figures"][key.replace("rank1", "rank1_initial")] == pytest.approx(value, abs=1e-6)
    assert report["gain"]["low"] <= report["gain"]["mean"] <= report["gain"]["high"]


def test_evaluate_shows_a_table(chain: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = chain / "one" / "model.gait"
    assert call("evaluate", "--data", tree, "--bundle", bundle, "--runtime", "torch", "--reranker", "none") == 0
    shown = capsys.readouterr().out
    assert "NM" in shown and "CL" in shown and "mean" in shown and "re-ranker none" in shown
    assert "interval" not in shown  # nothing was re-ranked


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--protocol", "market1501"], 2, "casiab"),
        (["--protocol", "oumvlp"], 1, "oumvlp: no gallery; got types bg-01, cl-01, nm-01, nm-02, nm-05"),
        (["--protocol", "gait3d"], 2, "lists its probes"),
        (["--scope", "half", "--reranker", "lbr"], 2, "scope"),
        (["--dataset", "casiab"], 1, "no sequence of the wanted identities"),
        (["--dataset", "oumvlp"], 1, "not named as in oumvlp"),
        (["--submission", "out.csv"], 2, "only GREW's server"),
        (["--two-stage", "--reranker", "none"], 2, "two stages need a re-ranker"),
        (["nowhere/report.json"], 2, "there is no folder for it"),
        (["--reranker", "magic"], 2, "magic"),
        (["--reranker", "cargait"], 2, "no CarGait weights"),
        (["--k", "0"], 2, "k"),
        (["--partition", "missing.json"], 1, "missing.json"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--bundle", "nowhere.gait"], 1, "nowhere.gait"),
    ],
)
def test_evaluate_refuses_bad_input_without_traceback(
    chain: Path, tree: Path, capfd: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    bundle = chain / ("two" if options[0] == "--k" else "one") / "model.gait"
    # A later option of the same name wins.
    assert call("evaluate", "--data", tree, "--bundle", bundle, "--runtime", "torch", *options) == code
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"learning_rate": 1}, "learning_rate"),
        ({"steps": "many"}, "wrong type"),
        ({"p": "x"}, ": p: a value of the wrong type; got 'x' (a string); expected an integer. Fix: correct p"),
        ({"k": 2.5}, ": k: a value of the wrong type; got 2.5 (a number); expected an integer"),
        ({"lr": True}, ": lr: a value of the wrong type"),
        ({"ema": "x"}, "expected a number or null"),
        ({"lr": float("nan")}, ": lr: not a finite number"),
        ({"augmentation": {"flip": "x"}}, "augmentation: flip: a value of the wrong type"),
        ({"options": []}, "expected an object"),
        ({"augmentation": 3}, "expected an object"),
        ({"augmentation": {"blur": 1}}, "blur"),
        ({"model": "gaitbose"}, "gaitbase"),
        ({"p": 50}, "p=50"),
        ([], "not a configuration"),
    ],
)
def test_train_refuses_bad_configurations(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], config: Any, message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    code = call("train", "backbone", "--data", tree, "--out", tmp_path / "run", "--config", path)
    error = capfd.readouterr().err
    assert code in (1, 2) and message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_configurations_come_from_files_and_options(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"steps": 7, "lr": 0.5, "augmentation": {"flip": 0.5}}))
    config = read_config(BackboneTraining, path, lr=0.1, seed=None)
    assert (config.steps, config.lr, config.seed, config.augmentation) == (7, 0.1, 0, Augmentation(flip=0.5))
    assert read_config(RerankerTraining) == RerankerTraining()
    with pytest.raises(OptionError):
        read_config(BackboneTraining, tmp_path / "missing.json")


def test_options_left_out_are_the_librarys_defaults() -> None:
    for verb in (cli.train_backbone, cli.train_reranker):
        defaults = {name: each.default for name, each in inspect.signature(verb).parameters.items()}
        assert all(defaults[name] is None for name in ("config", "steps", "minutes", "lr", "seed", "device"))
    library = inspect.signature(evaluate).parameters
    verb_defaults = inspect.signature(cli.evaluate).parameters
    assert verb_defaults["protocol"].default == library["protocol"].default
    of_trees = inspect.signature(evaluate_tree).parameters
    for name in ("protocol", "partition", "dataset", "reranker", "scope", "k", "runtime", "device", "two_stage"):
        assert verb_defaults[name].default == of_trees[name].default, name
    of_reranker, of_lists = (inspect.signature(each).parameters for each in (cli.train_reranker, build_lists))
    for name in ("v", "scope"):
        assert of_reranker[name].default == of_lists[name].default, name
    assert np.isclose(RerankerTraining().k, library["k"].default)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "device: there is no such device; got 'cuda:99'"),
        (["--device", "gpu"], "expected auto, cpu or cuda:N"),
        (["--device", "mps"], "unknown device"),
        (["--validation", "2"], "--validation: not a share of the identities; got 2.0"),
        (["--validation", "0"], "--validation"),
        (["--validation", "nan"], "--validation"),
        (["--minutes", "-1"], "max_minutes"),
        (["--seed", "-1"], "seed: must not be negative"),
    ],
)
@pytest.mark.parametrize("verb", ["backbone", "reranker"])
def test_train_refuses_bad_options(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    chain: Path,
    tree: Path,
    verb: str,
    options: list[str],
    message: str,
) -> None:
    base = ["--bundle", chain / "one" / "model.gait"] if verb == "reranker" else []
    capfd.readouterr()
    assert call("train", verb, "--data", tree, "--out", tmp_path / "run", *base, *options) == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--v", "1"], "v of at least 2"),
        (["--scope", "nearest"], "unknown scope"),
        (["--set", "heads=3"], "the heads do not divide the width; got width=256, heads=3"),
        (["--set", "k=0"], "RerankerTraining.k: must be at least 1"),
    ],
)
def test_impossible_rerankers_are_refused_before_the_data_are_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    named = ["--data", tmp_path / "nowhere", "--bundle", tmp_path / "none.gait", "--out", tmp_path / "run"]
    assert call("train", "reranker", *named, "--device", "cpu", *options) == 2
    error = capfd.readouterr().err
    assert message in error and error.startswith("error: ") and "Traceback" not in error


@pytest.mark.parametrize("below", [(), ("run",)])
def test_a_run_does_not_write_into_the_data(
    tree: Path, capfd: pytest.CaptureFixture[str], below: tuple[str, ...]
) -> None:
    before = sorted(tree.iterdir())
    assert call("train", "backbone", "--data", tree, "--out", tree.joinpath(*below), "--device", "cpu") == 2
    assert "the run's folder lies in the data" in capfd.readouterr().err and sorted(tree.iterdir()) == before


def test_another_kind_of_run_is_named_as_such(chain: Path, tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = ["train", "reranker", "--data", tree, "--bundle", chain / "one" / "model.gait", "--validation", "0.3"]
    assert call(*base, "--out", chain / "one", "--device", "cpu", "--set", "identities=2") == 2
    error = " ".join(capfd.readouterr().err.split())
    assert "the folder holds another run; got the settings of a re-ranker; expected the settings of a backbone" in error


@pytest.mark.parametrize("below", [(), ("run",)])
def test_train_refuses_a_file_as_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tree: Path, below: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert call("train", "backbone", "--data", tree, "--out", (tmp_path / "file").joinpath(*below)) == 2
    error = capfd.readouterr().err
    assert f"{tmp_path / 'file'}: is a file, not a folder" in error and "--out" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_keeps_the_run(tree: Path, tmp_path: Path) -> None:
    config = {"options": TINY, "p": 3, "k": 2, "frames": 3, "validate_every": 10**6, "checkpoint_every": 10**6}
    (tmp_path / "config.json").write_text(json.dumps({**config, "log_every": 1, "device": "cpu"}))
    run = tmp_path / "run"
    options = ["--data", tree, "--config", tmp_path / "config.json", "--validation", "0.3", "--out", run]
    command = [sys.executable, "-m", "gaitsdk.cli", "train", "backbone", *map(str, options), "--steps"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "1000000"], stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not (run / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    found = re.search(r"stopped at step (\d+); run the same command to go on", error)
    assert process.returncode == 130 and found and "Traceback" not in error
    step = int(found[1])
    assert [each.name for each in run.glob("checkpoint-*")] == [f"checkpoint-{step:07d}"]
    arguments = [str(each) for each in (*options, "--steps", step + 2, "--json")]
    assert call("train", "backbone", *arguments) == 0
    steps = [line["step"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())]
    assert sorted(set(steps)) == list(range(1, step + 3))  # it went on; it did not begin again
    assert Bundle.load(run / "model.gait").manifest.training["steps"] == step + 2


def test_ctrl_c_before_training_says_so(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupted)
    assert call("train", "backbone", "--data", tree, "--out", tmp_path / "run", "--device", "cpu") == 130
    assert "no checkpoint was written now" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_short_runs_are_told_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    cli._report({"bundle": "[/x].gait", "validation_rank1": [57.49999999999999, 60.0]}, 0.052, False)
    assert capsys.readouterr().out == "bundle: [/x].gait\nvalidation rank1: 57.5 -> 60\ntime: 3.1 s\n"
    cli._report({}, 12.34, False)
    assert capsys.readouterr().out == "time: 12.3 min\n"
    cli._report({}, 0.0012, True)
    assert json.loads(capsys.readouterr().out) == {"minutes": 0.0012}


def test_packed_data_and_a_public_data_sets_names(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--cache packs once and trains from the file; --dataset refuses a tree that has other names."""
    config = {"options": TINY, "p": 3, "k": 2, "frames": 3, "steps": 2, "drpl": {}, "gsam": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = ["train", "backbone", "--data", tree, "--config", tmp_path / "config.json", "--workers", "0"]
    packed = ["--cache", tmp_path / "walks.pack", "--out", tmp_path / "run", "--validation", "0.3", "--json"]
    assert call(*base, *packed) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 0 and (tmp_path / "walks.pack").is_file()
    assert call(*base, "--out", tmp_path / "other", "--dataset", "oumvlp") == 1
    assert "oumvlp" in capsys.readouterr().err and not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------------------------------ recipes, plans
SMALL = [
    "--recipe", "gaitbase-casiab", "--set", f"options={json.dumps(TINY)}", "--set", "p=3", "--set", "k=2",
    "--set", "frames=3", "--set", "augmentation.erase=0", "--validation", "0.3", "--device", "cpu", "--workers", 0,
]  # fmt: skip


def test_a_recipe_with_settings_and_its_dry_run(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    base = ["train", "backbone", "--data", tree, "--out", run, *SMALL, "--steps", 2, "--json"]
    assert call(*base, "--dry-run") == 0
    plan = json.loads(capsys.readouterr().out)
    assert not run.exists() and not list(tmp_path.iterdir())
    # gaitbase-casiab's, but for what the command line says
    assert plan["batch"] == [3, 2, 3] and plan["steps"] == 2 and plan["optimiser"].startswith("sgd, lr 0.1")
    assert plan["split"].startswith("none: every identity")
    assert plan["schedule"] == "multistep, /10 at [20000, 40000, 50000]"
    assert (plan["identities"], plan["validation_identities"], plan["sequences"]) == (5, 2, 5 * 5 * 2)
    assert call(*base, "--set", "lr=1e-3") == 0
    report = json.loads(capsys.readouterr().out)
    written = json.loads((run / "config.json").read_text())
    assert (report["identities"], report["sequences"]) == (plan["identities"], plan["sequences"])
    assert written["lr"] == 1e-3 and written["augmentation"]["rotate"] == 0.3 and written["augmentation"]["erase"] == 0
    assert call(*base[:-1], "--dry-run") == 0
    assert re.search(r"memory: weights 0\.00 GiB.*total 0\.\d\d GiB\n", capsys.readouterr().out)


def test_init_trains_a_bundle_further(
    chain: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Bundle.load(chain / "one" / "model.gait")
    base = ["train", "backbone", "--data", tree, "--validation", "0.3", "--init", first.path, "--device", "cpu"]
    small = ["--set", "p=3", "--set", "k=2", "--set", "frames=3", "--steps", 2, "--json"]
    assert call(*base, *small, "--out", tmp_path / "run") == 0
    assert json.loads(capsys.readouterr().out)["init"] == first.fingerprint
    second = Bundle.load(tmp_path / "run" / "model.gait")
    assert second.manifest.architecture == first.manifest.architecture and second.fingerprint != first.fingerprint
    assert second.manifest.licence == first.manifest.licence == "CC0-1.0"
    assert call(*base, "--recipe", "gaitset-casiab", "--out", tmp_path / "other") == 2
    assert "--init" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_the_rerankers_dry_run(chain: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "reranker", "--data", tree, "--bundle", chain / "one" / "model.gait", "--out", tmp_path / "run"]
    shared = ["--validation", "0.3", "--dry-run", "--json"]
    assert call(*base, *shared, "--recipe", "cargait", "--set", "identities=3", "--set", "sequences=2") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["batch"] == [3, 2, 2] and plan["steps"] == 100_000 and not (tmp_path / "run").exists()
    assert call(*base, *shared, "--recipe", "cargait-gaitset") == 1  # 32 identities
    assert "identities=32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "gaitset-casib"], 2, "did you mean 'gaitset-casiab'"),
        (["--recipe", "cargait"], 2, "gaitsdk train reranker"),
        (["--recipe", "gaitset-casiab", "--config", "x.yaml"], 2, "a recipe and a configuration"),
        (["--recipe", "skeletongait++-gait3d"], 1, "three maps per frame are read"),
        (["--set", "optimizer=sgd"], 2, "did you mean 'optimiser'"),
        (["--set", "lr"], 2, "name=value"),
        (["--init", "nowhere.gait"], 1, "nowhere.gait"),
        (["--dry-run", "--set", "p=50"], 1, "p=50"),
    ],
)
def test_what_a_recipe_cannot_do_is_said_before_anything_is_written(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert call("train", "backbone", "--data", tree, "--out", tmp_path / "run", *options) == code
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "recipes") == 0
    shown = capsys.readouterr().out
    assert "gaitset-casiab" in shown and "cargait-swingait3d" in shown and "74 identities train" in shown
    assert call("train", "recipes", "gaitset-casiab") == 0
    text = capsys.readouterr().out
    assert text.startswith("# GaitSet on CASIA-B") and "lr: 0.1" in text
    assert call("train", "recipes", "gaitset-mpl-casiab", "--json") == 0
    assert json.loads(capsys.readouterr().out)["milestones"] == [10000, 20000, 30000]  # of the recipe that it extends
    assert call("train", "recipes", "nothing") == 2
