"""The bundle that ships: what it is, how large, and that it knows strangers apart better than the classical baseline.

Its full figures come from benchmarks/shipped_bundle.py; this is a small honest sample of the same test.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gaitsdk import Bundle, synthetic
from gaitsdk.pipeline import embed_many
from gaitsdk.runtimes import open_runtime
from gaitsdk_training.data import Augmentation
from gaitsdk_training.evaluation import evaluate, gei
from gaitsdk_training.recipes import default

TYPES = ("nm-01", "nm-02", "nm-05", "bg-01", "cl-01")
VIEWS = ("018", "054", "090", "144")


def test_it_is_small_complete_and_says_what_it_is() -> None:
    bundle = Bundle.load()
    assert sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) <= 12 * 2**20
    assert bundle.artefact("backbone", "onnx") and bundle.artefact("reranker", "onnx")
    assert bundle.manifest.licence == "Apache-2.0" and bundle.manifest.reranker is not None
    assert bundle.manifest.training["command"] == "make bundle"


def test_nobody_is_in_two_sets() -> None:
    sets = (
        default.BACKBONE_IDENTITIES,
        default.RERANKER_IDENTITIES,
        default.VALIDATION_IDENTITIES,
        default.TEST_IDENTITIES,
    )
    assert len({person for each in sets for person in each}) == sum(map(len, sets))


def test_the_recipe_is_the_one_that_was_run() -> None:
    """The notes in the bundle are the recipe's own settings: change one and the bundle must be trained again."""
    notes = Bundle.load().manifest.training
    for recorded, current in (
        (notes["backbone"]["config"], default.BACKBONE_TRAINING),
        (notes["backbone"]["tuning"]["config"], default.BACKBONE_TUNING),
        (notes["reranker"]["config"], default.RERANKER_TRAINING),
    ):
        assert plain(type(current)(**restored(recorded))) == plain(current)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    return importlib.import_module("shipped_bundle")


def test_no_committed_figure_is_below_the_previous_bundles(figures: ModuleType) -> None:
    """Whoever trains the bundle again measures it again; what it reaches on strangers may not fall."""
    report, bundle = json.loads(figures.RESULTS.read_text()), Bundle.load()
    assert report["model"] == bundle.fingerprint
    assert report["reranker_sha256"] == bundle.manifest.files["reranker.safetensors"].sha256, "measure the bundle again"
    assert report["previous"]["synthetic"] and report["previous"]["real"]
    assert not figures.fallen(report)
    for data in figures.DATA:
        assert report[data]["rank1_percent"]["cargait"] != report["previous"][data]["rank1_percent"]["cargait"]


def test_a_figure_that_falls_is_named_and_the_predecessor_is_kept(figures: ModuleType) -> None:
    def report(model: str, rank1: float) -> dict[str, Any]:
        values = {"rank1_percent": {"initial": {"rank1": 50.0}, "cargait": {"rank1": rank1}}}
        return {"model": model, "reranker_sha256": "", "synthetic": values, "real": values}

    worse = figures.compare(report("b", 59.0), report("a", 60.0))
    assert figures.fallen(worse) == [f"{data}, cargait, rank1: 59.0 after 60.0" for data in ("synthetic", "real")]
    assert figures.compare(report("b", 61.0), worse)["previous"]["model"] == "a"
    assert not figures.fallen(figures.compare(report("c", 59.0), worse))
    assert not figures.fallen(figures.compare(report("a", 60.0), report("a", 60.0)))


#: Settings of the run that no longer exist and never changed a number beyond rounding.
RETIRED = {"channels_last"}


def plain(config: Any) -> Any:
    return json.loads(json.dumps(asdict(config)))


def restored(recorded: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration; what was added since has its default, which means what was done before."""
    config = {key: value for key, value in recorded.items() if key not in RETIRED}
    if "augmentation" in config:
        config["augmentation"] = Augmentation(**config["augmentation"])
    return config


@pytest.fixture(scope="module")
def sample() -> tuple[list[np.ndarray], tuple[list[str], list[str], list[str]]]:
    people = list(default.TEST_IDENTITIES)[:20]
    found = list(synthetic.dataset(people, types=TYPES, views=VIEWS, frames=20))
    names = [each.identity for each in found], [each.type for each in found], [each.view for each in found]
    return [each.silhouettes for each in found], names


def test_rank1_of_strangers_is_twice_the_baselines(
    sample: tuple[list[np.ndarray], tuple[list[str], list[str], list[str]]],
) -> None:
    silhouettes, names = sample
    runtime = open_runtime(Bundle.load())
    features = embed_many(runtime.embed, silhouettes)
    ours = evaluate(features, *names, protocol="casiab", reranker=runtime.rerank, k=10)
    baseline = evaluate(np.stack([gei(each) for each in silhouettes]), *names, protocol="casiab")
    assert ours["rank1"] >= 2 * baseline["rank1"]
    assert ours["rank1_initial"] >= 1.5 * baseline["rank1"]
    runtime.close()
