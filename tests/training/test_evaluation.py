"""The CASIA-B protocol against brute force and the reference, re-ranking inside it, bootstrap, GEI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.errors import InputError, OptionError
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.evaluation import evaluate, from_network, gei, hit_table, paired_bootstrap

TYPES = [f"nm-0{i}" for i in range(1, 7)] + ["bg-01", "bg-02", "cl-01", "cl-02"]
CONDITIONS = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}
VIEWS = ("000", "054", "090")


def crowd(people: int = 8, seed: int = 0, drop: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features near one centre per person, some sequences missing."""
    rng = np.random.default_rng(seed)
    rows = [(f"{i:03d}", t, v) for i in range(people) for t in TYPES for v in VIEWS]
    kept = np.sort(rng.choice(len(rows), len(rows) - drop, replace=False))
    labels, types, views = (np.array([rows[i][c] for i in kept]) for c in range(3))
    centres = rng.normal(size=(people, 4, 6))
    features = np.stack([centres[int(label)] for label in labels]) + 1.8 * rng.normal(size=(len(kept), 4, 6))
    return features.astype(np.float32), labels, types, views


def brute(features: np.ndarray, labels: Any, types: Any, views: Any, k: int = 1) -> dict[str, float]:
    """The protocol in plain loops."""
    figures: dict[str, float] = {}
    for condition, kinds in CONDITIONS.items():
        means = []
        for u in VIEWS:
            cells = []
            for v in VIEWS:
                if u == v:
                    continue
                gallery = [i for i in range(len(labels)) if views[i] == v and types[i] in TYPES[:4]]
                probes = [i for i in range(len(labels)) if views[i] == u and types[i] in kinds]
                hits = 0
                for p in probes:
                    d = [np.linalg.norm(features[p] - features[g], axis=1).mean() for g in gallery]
                    hits += labels[p] in [labels[gallery[j]] for j in np.argsort(d, kind="stable")[:k]]
                cells.append(round(100 * hits / len(probes), 2))
            figures[f"rank{k}/{condition}/{u}"] = float(np.mean(cells))
            means.append(figures[f"rank{k}/{condition}/{u}"])
        figures[f"rank{k}/{condition}"] = float(np.mean(means))
    figures[f"rank{k}"] = float(np.mean([figures[f"rank{k}/{c}"] for c in CONDITIONS]))
    return figures


def test_casiab_equals_brute_force() -> None:
    data = crowd()
    found = evaluate(*data)
    for k in (1, 5):
        for key, value in brute(*data, k=k).items():
            assert found[key] == pytest.approx(value, abs=1e-9), key
    assert 20 < found["rank1"] < 95  # neither trivial nor hopeless
    probes = int(np.isin(data[2], TYPES[4:]).sum())
    assert (found["probes"], found["probes_dropped"]) == (probes, 0)
    assert sum(found[f"probes/{name}"] for name in CONDITIONS) == probes
    assert {"rank1_same_view", "rank1_same_view/NM", "rank1_same_view/CL/090"} <= found.keys()
    assert not any("initial" in key for key in found)


@pytest.mark.parametrize(("metric", "short"), [("euclidean", "euc"), ("cosine", "cos")])
def test_casiab_equals_the_reference(parity_dir: Path, metric: str, short: str) -> None:
    document = json.loads((parity_dir / "eval_casiab.json").read_text())
    arrays: Any = np.load(parity_dir / "eval_casiab.npz", allow_pickle=False)
    features = np.ascontiguousarray(arrays["embeddings"].transpose(0, 2, 1))
    found = evaluate(features, document["labels"], document["types"], document["views"], metric=metric)
    expected = document["results"]
    for condition in CONDITIONS:
        value = expected[f"single_view_gallery/{short}"][f"scalar/test_accuracy/{condition}@R1"]
        assert found[f"rank1/{condition}"] == pytest.approx(value, abs=0.01)
        per_view = expected[f"single_view_gallery/{short}/per_probe_view_{condition}"]
        views = sorted(set(document["views"]))
        matrix = np.array(expected[f"single_view_gallery/{short}/acc_matrix_{condition}"])
        for i, view in enumerate(views):
            assert found[f"rank1/{condition}/{view}"] == pytest.approx(per_view[i], abs=0.01)
            assert found[f"rank1_same_view/{condition}/{view}"] == pytest.approx(matrix[i, i], abs=0.01)


def test_a_reranker_changes_the_first_k_only() -> None:
    data = crowd()
    seen: list[tuple[int, ...]] = []

    def backwards(probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        seen.append(candidates.shape)
        return -np.linalg.norm(probes[:, None] - candidates, axis=-1).mean(-1)

    found = evaluate(*data, reranker=backwards, k=4)
    plain = evaluate(*data)
    assert {shape[1:] for shape in seen} == {(4, 4, 6)}
    assert found["rank1_initial"] == plain["rank1"] and found["rank1/NM"] < plain["rank1/NM"]
    # Reversing the first 4 keeps who is among them: with k = 5 at least the first 5 are the same set.
    assert evaluate(*data, reranker=backwards, k=5)["rank5"] == plain["rank5"]
    same = hit_table(*data, reranker=backwards, k=4)
    assert (same.rank_before[same.rank_before > 4] == same.rank_after[same.rank_before > 4]).all()
    assert (same.rank_before == same.rank_after)[~same.cross_view].all()


def test_an_oracle_reranker_finds_everyone_in_the_shortlist() -> None:
    features, labels, types, views = crowd()
    # A dimension that says who it is, which the distance hardly sees.
    marked = np.concatenate([features, labels.astype(np.float32)[:, None, None].repeat(4, 1) * 1e-4], axis=2)

    def oracle(probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.abs(probes[:, None, 0, -1] - candidates[:, :, 0, -1])

    table = hit_table(marked, labels, types, views, reranker=oracle, k=10)
    cross = table.where(table.cross_view)
    within = (cross.rank_before > 0) & (cross.rank_before <= 10)
    assert cross.after[within].all() and not cross.after[~within].any()
    low, mean, high = paired_bootstrap(cross.before, cross.after, cross.identity)
    assert 0 < low < mean < high
    assert mean == pytest.approx(100 * (cross.after.mean() - cross.before.mean()))


def test_an_untrained_cargait_changes_nothing() -> None:
    data = crowd()
    torch.manual_seed(0)
    network = CarGait(dims=6, width=8, heads=2)
    found = evaluate(*data, reranker=from_network(network), k=10)
    assert found["rank1"] == pytest.approx(found["rank1_initial"], abs=0.6)  # up to near ties
    assert evaluate(*data, reranker=network, k=10) == found  # the network itself will do


def test_missing_sequences_are_counted() -> None:
    features, labels, types, views = crowd(drop=0)
    # Nobody has a gallery sequence in 054 or 090: probes of 000 have nothing to be compared with.
    kept = ~(np.isin(types, TYPES[:4]) & (views != "000"))
    found = evaluate(features[kept], labels[kept], types[kept], views[kept])
    assert found["probes_dropped"] == 8 * 6 and found["probes"] == 8 * 12
    assert "rank1/NM/000" not in found and "rank1/NM/090" in found
    # One person has no gallery at all: those probes stay in the denominator, as misses.
    kept = ~(np.isin(types, TYPES[:4]) & (labels == "003"))
    assert evaluate(features[kept], labels[kept], types[kept], views[kept])["rank5"] <= 100 * 7 / 8 + 0.01


def test_what_cannot_be_evaluated_is_refused() -> None:
    features, labels, types, views = crowd()
    with pytest.raises(OptionError, match="casiab"):
        evaluate(features, labels, types, views, protocol="market1501")
    with pytest.raises(InputError, match="views"):
        evaluate(features, labels, types, views[:-1])
    with pytest.raises(InputError, match="no gallery"):
        evaluate(features, labels, np.full(len(labels), "bg-01"), views)
    with pytest.raises(InputError, match="no probes"):
        evaluate(features, labels, np.full(len(labels), "nm-01"), views)
    with pytest.raises(InputError, match="two views"):
        evaluate(features, labels, types, np.full(len(labels), "090"))
    with pytest.raises(InputError, match="probe_set"):
        evaluate(features, labels, types, views, probe_set=["001-nm-05-000"])
    with pytest.raises(OptionError, match="k"):
        evaluate(features, labels, types, views, k=0)
    with pytest.raises(OptionError, match="re-ranker"):
        evaluate(features, labels, types, views, reranker="cargait")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="metric"):
        evaluate(features, labels, types, views, metric="manhattan")
    with pytest.raises(InputError, match="re-ranker"):
        evaluate(features, labels, types, views, reranker=lambda p, c: np.zeros(len(p)))
    with pytest.raises(InputError, match="re-ranker"):
        evaluate(features, labels, types, views, reranker=lambda p, c: np.full(c.shape[:2], np.nan))


def test_bootstrap_resamples_people_not_rows() -> None:
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(20), 50)
    a = rng.random(1000) < 0.5
    assert paired_bootstrap(a, a, identities) == (0.0, 0.0, 0.0)
    # One person gains on all rows, nobody else: 5 points on average, but it hangs on that person.
    b = np.where(identities == 3, True, a)
    low, mean, high = paired_bootstrap(a, b, identities)
    assert low == 0.0 and mean == pytest.approx(100 * (b.mean() - a.mean())) and high > 1.8 * mean
    # Everybody gains about alike: a narrow interval around the mean.
    c = a | (rng.random(1000) < 0.3)
    low, mean, high = paired_bootstrap(a, c, identities)
    assert 0.7 * mean < low < mean < high < 1.3 * mean
    assert paired_bootstrap(a, c, identities, seed=1) == paired_bootstrap(a, c, identities, seed=1)
    with pytest.raises(InputError):
        paired_bootstrap(a, c[:-1], identities)
    with pytest.raises(OptionError):
        paired_bootstrap(a, c, identities, n=0)


def test_gei_is_the_mean_silhouette_and_goes_through_the_protocol() -> None:
    frames = np.zeros((4, 64, 64), np.uint8)
    frames[:2, :, 10:32] = 255
    feature = gei(frames)
    assert feature.shape == (1, 64 * 44) and feature.dtype == np.float32
    np.testing.assert_allclose(feature.reshape(64, 44)[:, :22], 0.5)
    assert not feature.reshape(64, 44)[:, 22:].any()
    walks = list(synthetic.dataset([1, 2, 3], ("nm-01", "nm-05", "bg-01", "cl-01"), ("036", "090"), frames=8))
    found = evaluate(
        np.stack([gei(each.silhouettes) for each in walks]),
        [each.identity for each in walks],
        [each.type for each in walks],
        [each.view for each in walks],
    )
    assert 0 <= found["rank1"] <= 100 and found["probes"] == 18
