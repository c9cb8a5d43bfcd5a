"""The protocols against the reference and brute force, re-ranking of lists and of whole galleries, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import metrics
from gaitsdk.distance import pairwise
from gaitsdk_training.evaluation import cells, evaluate, hit_table
from gaitsdk_training.evaluation.cells import Cell, rank_cells
from gaitsdk_training.evaluation.grew import submission
from gaitsdk_training.evaluation.hits import ALL_VIEWS
from gaitsdk_training.evaluation.ranking import nearest, rank_entries, reorder_ranks, summarise
from gaitsdk_training.evaluation.request import Request

METRICS = {"euclidean": "euc", "cosine": "cos"}
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return json.loads((folder / f"{name}.json").read_text()), dict(arrays)


def maps(arrays: dict[str, np.ndarray], key: str = "embeddings") -> np.ndarray:
    """The reference keeps [n, d, s]."""
    return np.ascontiguousarray(arrays[key].transpose(0, 2, 1))


def check_distance(folder: Path) -> None:
    _, arrays = read(folder, "eval_distance")
    for case in ("a", "b", "c"):
        for metric, short in METRICS.items():
            found = pairwise(maps(arrays, f"x_{case}"), maps(arrays, f"y_{case}"), metric)
            # The reference's own cancellation is up to 4e-3 (a map to itself); see its README.
            np.testing.assert_allclose(found, arrays[f"{short}_{case}"], atol=5e-3)


def check_casiab(folder: Path) -> None:
    document, arrays = read(folder, "eval_casiab")
    names = document["labels"], document["types"], document["views"]
    views = sorted(set(document["views"]))
    for metric, short in METRICS.items():
        found = evaluate(maps(arrays), *names, protocol="casiab", metric=metric)
        table = hit_table(maps(arrays), *names, protocol="casiab", metric=metric)
        pooled = evaluate(maps(arrays), *names, protocol="casiab-cross-view", metric=metric)
        single, cross = (document["results"][f"{kind}_view_gallery/{short}"] for kind in ("single", "cross"))
        for condition in ("NM", "BG", "CL"):
            assert found[f"rank1/{condition}"] == close(single[f"scalar/test_accuracy/{condition}@R1"])
            assert pooled[f"rank1/{condition}"] == close(cross[f"scalar/test_accuracy/{condition}-Rank@1"])
            assert pooled[f"mAP/{condition}"] == close(cross[f"scalar/test_accuracy/{condition}-mAP"])
            key = f"single_view_gallery/{short}"
            per_view = document["results"][f"{key}/per_probe_view_{condition}"]
            assert [found[f"rank1/{condition}/{view}"] for view in views] == close(per_view)
            for u, row in zip(views, document["results"][f"{key}/acc_matrix_{condition}"], strict=True):
                for v, value in zip(views, row, strict=True):
                    cell = (table.condition == condition) & (table.probe_view == u) & (table.gallery_view == v)
                    assert 100 * table.before[cell].mean() == close(value)


def check_gait3d(folder: Path) -> None:
    document, arrays = read(folder, "eval_gait3d")
    names = document["labels"], document["types"], document["views"]
    keys = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mAP": "mAP", "mINP": "mINP"}
    for metric, short in METRICS.items():
        found = evaluate(maps(arrays), *names, protocol="gait3d", probe_set=document["probe_set"], metric=metric)
        for ours, theirs in keys.items():
            assert found[ours] == close(document["results"][short][f"scalar/test_accuracy/{theirs}"])
    assert (found["probes"], found["probes_dropped"], found["probes_absent"]) == (33, 7, 0)
    table = hit_table(maps(arrays), *names, protocol="gait3d", probe_set=document["probe_set"])
    assert len(table) == 40
    kept = table.where(table.has_mate)
    np.testing.assert_allclose(kept.ap_after, document["AP"], atol=1e-9)
    np.testing.assert_allclose(kept.inp_after, document["INP"], atol=1e-9)
    curve = [np.mean(kept.rank_after <= rank) for rank in range(1, len(document["cmc"]) + 1)]
    np.testing.assert_allclose(curve, document["cmc"], atol=1e-6)


def check_grew(folder: Path) -> None:
    document, arrays = read(folder, "eval_grew")
    names = document["labels"], document["types"], document["views"]
    for metric, short in METRICS.items():
        found = evaluate(maps(arrays), *names, protocol="grew", metric=metric)
        for rank in (1, 5):
            assert found[f"rank{rank}"] == close(
                document["results"][f"real_scene/{short}"][f"scalar/test_accuracy/Rank-{rank}"]
            )
        request = Request.check(maps(arrays), *names, None, 10, None, metric)
        assert submission(request) == document["results"][f"submission_csv/{short}"]
    assert (found["probes"], found["probes_dropped"], found["probes_without_mate"]) == (30, 0, 1)


def check_many(folder: Path) -> None:
    """Entries of the probe's identity by the probe's camera do not count: the cross-view gallery's rule."""
    document, arrays = read(folder, "eval_many_and_rerank")
    probes, entries = len(arrays["xq"]), len(arrays["xg"])
    labels, views = np.concatenate([arrays["qp"], arrays["gp"]]), np.concatenate([arrays["qc"], arrays["gc"]])
    everything = np.concatenate([maps(arrays, "xq"), maps(arrays, "xg")])
    request = Request.check(everything, labels, np.arange(probes + entries), views, None, 1, None, "euclidean")
    cell = Cell(np.arange(probes), np.arange(probes, probes + entries), "", ALL_VIEWS, excludes_own_view=True)
    table = rank_cells(request, [cell])
    table = table.where(table.has_mate)
    assert 100 * table.before.mean() == close(100 * document["rank1"])
    assert 100 * table.ap_before.mean() == close(100 * document["mAP"])
    assert 100 * table.inp_before.mean() == close(100 * document["mINP"])


CHECKS: dict[str, Callable[[Path], None]] = {
    "eval_distance": check_distance,
    "eval_casiab": check_casiab,
    "eval_gait3d": check_gait3d,
    "eval_grew": check_grew,
    "eval_many_and_rerank": check_many,
}


def close(value: Any) -> Any:
    return pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("name", CHECKS)
def test_reference_figures_are_reached(parity_dir: Path, name: str) -> None:
    CHECKS[name](parity_dir)


def test_no_reference_file_is_forgotten(parity_dir: Path) -> None:
    assert {path.stem for path in parity_dir.glob("eval_*.npz")} == CHECKS.keys()


def walkers(people: int, kinds: list[str], views: list[str], seed: int = 0, drop: int = 0, noise: float = 1.6) -> Data:
    """Features near one centre per person, some sequences missing."""
    rng = np.random.default_rng(seed)
    rows = [(f"{i:05d}", kind, view) for i in range(people) for kind in kinds for view in views]
    kept = np.sort(rng.choice(len(rows), len(rows) - drop, replace=False))
    labels, types, cameras = (np.array([rows[i][level] for i in kept]) for level in range(3))
    centres = rng.normal(size=(people, 4, 6))
    features = centres[labels.astype(int)] + noise * rng.normal(size=(len(kept), 4, 6))
    return features.astype(np.float32), labels, types, cameras


VIEWS = ["000", "015", "030"]


def oumvlp(**options: Any) -> Data:
    return walkers(25, ["00", "01"], VIEWS, **options)


def test_oumvlp_with_and_without_probes_that_lack_a_mate() -> None:
    features, labels, types, views = oumvlp(drop=20)
    found = evaluate(features, labels, types, views, protocol="oumvlp")
    means: dict[str, list[float]] = {"rank1": [], "rank1_with_mate": []}
    lonely = rankings = 0
    for u in VIEWS:
        cells_of_view: dict[str, list[float]] = {"rank1": [], "rank1_with_mate": []}
        for v in VIEWS:
            gallery = np.flatnonzero((types == "01") & (views == v))
            probes = np.flatnonzero((types == "00") & (views == u))
            if u == v:
                continue
            hits, mates = [], []
            for probe in probes:
                distances = [np.linalg.norm(features[probe] - features[g], axis=1).mean() for g in gallery]
                hits.append(labels[gallery[int(np.argmin(distances))]] == labels[probe])
                mates.append(labels[probe] in labels[gallery])
            lonely, rankings = lonely + mates.count(False), rankings + len(mates)
            cells_of_view["rank1"].append(round(100 * np.mean(hits), 2))
            cells_of_view["rank1_with_mate"].append(round(100 * sum(hits) / sum(mates), 2))
        for key, values in cells_of_view.items():
            assert found[f"{key}/NM/{u}"] == pytest.approx(np.mean(values), abs=1e-9)
            means[key].append(float(np.mean(values)))
    for key, values in means.items():
        assert found[key] == found[f"{key}/NM"] == pytest.approx(np.mean(values), abs=1e-9)
    assert 20 < found["rank1"] < found["rank1_with_mate"] < 95
    assert (found["rankings"], found["rankings_without_mate"]) == (rankings, lonely) and lonely > 5
    assert (found["probes"], found["probes_dropped"]) == (int((types == "00").sum()), 0)


def test_the_cross_view_gallery_equals_brute_force() -> None:
    features, labels, types, views = oumvlp(drop=15)
    found = evaluate(features, labels, types, views, protocol="oumvlp-cross-view")
    distances = pairwise(features, features)
    ranks, precisions = [], []
    for u in VIEWS:
        hits, averages = [], []
        for probe in np.flatnonzero((types == "00") & (views == u)):
            excluded = (views == u) & (labels == labels[probe])
            gallery = np.flatnonzero((types == "01") & ~excluded)
            matches = (labels[gallery] == labels[probe])[np.argsort(distances[probe, gallery], kind="stable")]
            hits.append(bool(matches[0]))
            if matches.any():
                averages.append(float(metrics.average_precision(matches[None])[0]))
        ranks.append(round(100 * np.mean(hits), 2))
        precisions.append(round(100 * np.mean(averages), 2))
        assert found[f"rank1/NM/{u}"] == pytest.approx(ranks[-1]) and found[f"mAP/NM/{u}"] == close(precisions[-1])
    assert found["rank1"] == pytest.approx(np.mean(ranks)) and found["mAP"] == close(np.mean(precisions))
    assert 20 < found["rank1"] < 99


def test_ranks_are_those_of_a_stable_sort() -> None:
    """Distances of few values, so that most of them are ties; galleries without a mate; every K."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, m = rng.integers(1, 12, 2)
        distances = rng.integers(0, 4, (n, m)).astype(np.float32)
        probes, gallery = rng.integers(0, 4, n), rng.integers(0, 4, m)
        order = metrics.rank(distances)
        matches = metrics.match(order, probes, gallery)
        rows, columns = np.nonzero(probes[:, None] == gallery[None])
        ranks = rank_entries(distances, rows, columns)
        first, precision, penalty = summarise(rows, ranks, n)
        np.testing.assert_array_equal(first, metrics.first_match(matches))
        np.testing.assert_allclose(precision, metrics.average_precision(matches))
        np.testing.assert_allclose(penalty, metrics.inverse_negative_penalty(matches))
        for k in (1, 2, int(m), int(m) + 3):
            np.testing.assert_array_equal(nearest(distances, k), order[:, :k])
        k = int(rng.integers(1, m + 1))
        new = rng.integers(0, 3, (n, k)).astype(np.float32)
        moved = order.copy()
        moved[:, :k] = np.take_along_axis(order[:, :k], np.argsort(new, axis=1, kind="stable"), axis=1)
        after = summarise(rows, reorder_ranks(ranks, rows, new), n)
        np.testing.assert_array_equal(after[0], metrics.first_match(metrics.match(moved, probes, gallery)))


@pytest.mark.parametrize("protocol", ["oumvlp", "oumvlp-cross-view"])
def test_figures_do_not_depend_on_blocks_and_threads(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = oumvlp(drop=9)

    def farthest(probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return -np.linalg.norm(probes[:, None] - candidates, axis=-1).mean(-1)

    seen: list[tuple[int, int]] = []
    whole = evaluate(
        *data, protocol=protocol, reranker=farthest, k=4, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted({done for done, _ in seen})
    monkeypatch.setattr(cells, "_BLOCK", 1)
    monkeypatch.setattr(cells, "BATCH", 3)  # probes in a block
    monkeypatch.setattr(cells, "_MAX_THREADS", 3)
    assert evaluate(*data, protocol=protocol, reranker=farthest, k=4) == whole
    assert whole["rank1"] < whole["rank1_initial"]


class Whole:
    """Re-ranks whole galleries by a dimension that says who it is."""

    scope = "full"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def rescore_all(self, probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        self.shapes.append((len(probes), len(gallery)))
        return np.abs(probes[:, None, 0, -1] - gallery[None, :, 0, -1])


def marked(data: Data) -> Data:
    """With a last dimension that says who it is, which the distance hardly sees."""
    mark = data[1].astype(np.float32)[:, None, None].repeat(data[0].shape[1], 1) * 1e-4
    return np.concatenate([data[0], mark], axis=2), *data[1:]


@pytest.mark.parametrize("protocol", ["oumvlp", "oumvlp-cross-view", "gait3d", "grew"])
def test_whole_galleries_are_reranked(protocol: str) -> None:
    data = marked(oumvlp(drop=6) if "oumvlp" in protocol else walkers(25, ["01", "02"], ["000"]))
    probe_set = [f"{label}-02-000" for label in np.unique(data[1])] if protocol == "gait3d" else None
    oracle = Whole()
    found = evaluate(*data, protocol=protocol, reranker=oracle, k=1, probe_set=probe_set)
    key = "rank1_with_mate" if protocol == "oumvlp" else "rank1"
    assert found[key] == 100.0 > found["rank1_initial"]
    if protocol == "oumvlp":
        assert len(oracle.shapes) == 6  # one call for each pair of different views
    else:
        assert len(oracle.shapes) == 1
    if "mAP" in found:
        assert found["mAP"] == pytest.approx(100.0)


def test_a_method_for_lists_and_for_galleries_is_used_as_its_scope_says() -> None:
    class Both(Whole):
        def rescore(self, probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
            return np.zeros(candidates.shape[:2])

    both = Both()
    data = marked(oumvlp())
    assert evaluate(*data, protocol="oumvlp", reranker=both)["rank1"] == 100.0
    both.scope = "list"
    unchanged = evaluate(*data, protocol="oumvlp", reranker=both)
    assert unchanged["rank1"] == unchanged["rank1_initial"] < 100.0  # all equal: the shortlist's order


def test_a_gallery_with_fewer_entries_than_k() -> None:
    data = walkers(4, ["01", "02"], ["000"])
    seen = []

    def backwards(probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        seen.append(candidates.shape)
        return -np.linalg.norm(probes[:, None] - candidates, axis=-1).mean(-1)

    found = evaluate(*data, protocol="grew", reranker=backwards, k=50)
    assert seen == [(4, 4, 4, 6)] and found["rank5"] == found["rank20"] == 100.0
    probe_set = [f"{label}-02-000" for label in np.unique(data[1])]
    assert evaluate(*data, protocol="gait3d", reranker=backwards, k=50, probe_set=probe_set)["rank10"] == 100.0


def test_what_the_protocol_takes_out_no_reranker_brings_back() -> None:
    """The entry of the probe's own view, the best of all, in a gallery that is shorter than K."""
    features, labels, types, views = walkers(3, ["00", "01"], VIEWS)
    features[types == "01"] = features[types == "00"]  # the excluded entry is the probe itself

    def nearest_first(probes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.linalg.norm(probes[:, None] - candidates, axis=-1).mean(-1)

    found = evaluate(features, labels, types, views, "oumvlp-cross-view", nearest_first, k=100)
    assert found["rank1"] == found["rank1_initial"] and found["mAP"] == found["mAP_initial"]
    table = hit_table(features, labels, types, views, protocol="oumvlp-cross-view", reranker=nearest_first, k=100)
    assert table.cross_view.all() and table.rank_after.max() <= 9 - 2  # 9 entries, without the probe's and one mate's


def test_gait3d_counts_what_it_drops() -> None:
    features, labels, types, views = walkers(8, ["01", "02"], ["000"])
    listed = [f"{label}-02-000" for label in np.unique(labels)] + ["09999-02-000"]
    kept = ~((types == "01") & (labels == "00003"))
    found = evaluate(features[kept], labels[kept], types[kept], views[kept], "gait3d", probe_set=listed)
    assert (found["probes"], found["probes_dropped"], found["probes_absent"]) == (7, 1, 1)
    full = evaluate(features, labels, types, views, "gait3d", probe_set=listed)
    assert full["probes"] == 8 and {"rank1", "rank5", "rank10", "mAP", "mINP"} <= full.keys()


def test_the_servers_file_follows_the_reranker() -> None:
    gallery = walkers(15, ["01", "02"], ["000"])
    probes = walkers(15, ["03"], ["000"], seed=1)
    features = np.concatenate([gallery[0], probes[0]])
    labels = np.concatenate([gallery[1], np.full(15, "probe")])
    types = np.concatenate([gallery[2], probes[2]])
    views = np.concatenate([gallery[3], [f"video{i}" for i in range(15)]])

    def backwards(walks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return -np.linalg.norm(walks[:, None] - candidates, axis=-1).mean(-1)

    class All:
        scope = "full"

        def rescore_all(self, walks: np.ndarray, entries: np.ndarray) -> np.ndarray:
            return -pairwise(walks, entries)

    rows = {
        name: submission(Request.check(features, labels, types, views, reranker, k, None, "euclidean"))
        for name, reranker, k in (("none", None, 1), ("list", backwards, 7), ("long", backwards, 30), ("all", All(), 7))
    }
    for plain, short, long, whole in zip(*(each[1:] for each in rows.values()), strict=True):
        assert plain[0] == short[0] and len(plain) == 21
        assert short[1:8] == plain[7:0:-1] and short[8:] == plain[8:]
        assert long == whole and long[-10:] == plain[20:10:-1]
