"""Every re-ranker that a bundle or NumPy can give, in `gaitsdk evaluate`'s function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.errors import OptionError
from gaitsdk.models import create
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk.rerankers import RERANKERS
from gaitsdk_training.evaluation.tree import evaluate_tree

TINY = {"channels": (4, 4, 8, 8), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 8, "strips": 4}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    synthetic.write_casiab(root, range(1, 7), types=("nm-01", "nm-05", "cl-01"), views=("036", "090"), frames=4)
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bundle") / "one.gait"
    return Bundle.create(path, backbone=create("gaitbase", **TINY), reranker=PairClassifier(8, 4, 16), k=4)


def test_all_of_them_are_evaluated_by_name(tree: Path, bundle: Bundle) -> None:
    initial, after = set(), {}
    for name in RERANKERS:
        if name == "cargait":
            continue
        for scope in ("list",) if name in ("none", "classifier") else ("list", "full"):
            report = evaluate_tree(tree, bundle, reranker=name, scope=scope, runtime="torch")
            assert (report["reranker"], report["scope"]) == (name, scope)
            assert report["k"] == {("none", "list"): 0}.get((name, scope), 4 if scope == "list" else None)
            after[name, scope] = report["figures"]["rank1"]
            assert 0 <= report["figures"]["rank1"] <= 100
            initial.add(report["figures"].get("rank1_initial", report["figures"]["rank1"]))
    assert len(initial) == 1, "the shortlist is the same for all"
    assert len(set(after.values())) > 2, "they re-order nothing here, so the test says little"


def test_what_a_bundle_has_not_is_refused(tree: Path, bundle: Bundle) -> None:
    with pytest.raises(OptionError, match="no CarGait weights"):
        evaluate_tree(tree, bundle, runtime="torch")
    with pytest.raises(OptionError, match="judges pairs"):
        evaluate_tree(tree, bundle, reranker="classifier", scope="full", runtime="torch")
    with pytest.raises(OptionError, match="did you mean 'gcr'"):
        evaluate_tree(tree, bundle, reranker="grc", runtime="torch")
