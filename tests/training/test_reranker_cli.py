"""`gaitsdk train reranker`: features that are kept, and the baseline."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.models import create
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_training.data import from_tree
from gaitsdk_training.features import embed_dataset
from gaitsdk_training.reranker import load_best

TINY = {"channels": (4, 4, 8, 8), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 8, "strips": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    synthetic.write_casiab(root, range(1, 6), types=("nm-01", "nm-02"), views=("036", "090"), frames=4)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return Bundle.create(tmp_path_factory.mktemp("bundle") / "one.gait", backbone=create("gaitbase", **TINY)).path


def train(tree: Path, bundle: Path, out: Path, *more: object, **config: object) -> int:
    """The exit code of the verb, with this package's verbs only."""
    fields = {"width": 16, "heads": 2, "identities": 3, "sequences": 2, "steps": 2, "validate_every": 2, "k": 3}
    (out.parent / "config.json").write_text(json.dumps({**fields, **config}))
    options = ["--data", tree, "--bundle", bundle, "--out", out, "--config", out.parent / "config.json"]
    fixed = ["--validation", "0.4", "--device", "cpu", "--v", "5", "--json"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("gaitsdk.cli.entry_points", own_verbs)
        main([str(each) for each in ("train", "reranker", *options, *fixed, *more)])
    return int(exit_.value.code or 0)


def own_verbs(group: str) -> list[EntryPoint]:
    return [point for point in entry_points(group=group) if point.value.startswith("gaitsdk_training.")]


def test_features_are_kept_in_the_runs_folder(tree: Path, bundle: Path, tmp_path: Path) -> None:
    assert train(tree, bundle, tmp_path / "run") == 0
    training, validation = from_tree(tree).split(0.4)
    network = Bundle.load(bundle).build_backbone()
    for name, part in (("training", training), ("validation", validation)):
        kept = np.load(tmp_path / "run" / f"features-{name}.npy")
        np.testing.assert_allclose(kept, embed_dataset(network, part), atol=1e-6)  # type: ignore[arg-type]
    assert Bundle.load(tmp_path / "run" / "model.gait").manifest.reranker is not None


def test_runs_share_features_and_the_baseline_gives_a_bundle_too(
    tree: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--features", tmp_path / "kept" / "walks.npy"]
    assert train(tree, bundle, tmp_path / "one", *shared) == 0
    files = sorted((tmp_path / "kept").glob("*.npy"))
    assert [each.name for each in files] == ["walks-training.npy", "walks-validation.npy"]
    assert not list((tmp_path / "one").glob("features*"))
    written = [each.stat().st_mtime_ns for each in files]
    capsys.readouterr()
    assert train(tree, bundle, tmp_path / "two", *shared, method="classifier") == 0
    assert [each.stat().st_mtime_ns for each in files] == written
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "classifier" and report["bundle"] == str(tmp_path / "two" / "model.gait")
    kept, best = Bundle.load(report["bundle"]), load_best(tmp_path / "two")
    assert kept.manifest.reranker is not None and kept.manifest.reranker.name == "classifier"
    found = kept.build_reranker()
    assert isinstance(found, PairClassifier) and isinstance(best, PairClassifier)
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in found.state_dict().items())


def test_features_in_the_way_of_another_file_are_refused(
    tree: Path, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine-training.npy").write_text("mine")
    capfd.readouterr()
    assert train(tree, bundle, tmp_path / "run", "--features", tmp_path / "mine.npy") == 1
    error = capfd.readouterr().err
    assert "mine-training.npy" in error and "Traceback" not in error
    assert (tmp_path / "mine-training.npy").read_text() == "mine" and not (tmp_path / "run").exists()
