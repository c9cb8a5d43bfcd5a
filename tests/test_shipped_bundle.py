"""The bundle that ships: what it is, how large, and that it knows strangers apart better than the classical baseline.

Its full figures come from benchmarks/shipped_bundle.py; this is a small honest sample of the same test.
"""

from __future__ import annotations

import json
from dataclasses import asdict
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
        (notes["reranker"]["config"], default.RERANKER_TRAINING),
    ):
        assert plain(type(current)(**restored(recorded))) == plain(current)


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
