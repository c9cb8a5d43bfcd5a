"""The re-rankers without weights against their definitions, written as loops, and what must not change an answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gaitsdk import rerankers
from gaitsdk.distance import paired, pairwise
from gaitsdk.errors import InputError, OptionError

Array = NDArray[Any]
NAMES = ("none", "k-reciprocal", "lbr", "gcr", "query-expansion")
#: Small numbers of neighbours, so that lists of 12 are cut off somewhere.
TIGHT: dict[str, dict[str, Any]] = {
    "none": {},
    "k-reciprocal": {"k1": 4, "k2": 3},
    "lbr": {"sigma": 0.1},
    "gcr": {"k": 3},
    "query-expansion": {"n": 2},
}


def lists(seed: int, n: int = 3, k: int = 12, strips: int = 3, dims: int = 5) -> tuple[Array, Array]:
    """Probes and candidates in loose groups, so that neighbours agree."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, strips, dims))
    people = rng.integers(0, 4, (n, k + 1))
    maps = (centres[people] + 0.6 * rng.normal(size=(n, k + 1, strips, dims))).astype(np.float32)
    return maps[:, 0].copy(), maps[:, 1:].copy()


def distance(a: Array, b: Array) -> float:
    return float(np.mean([math.dist(x, y) for x, y in zip(a, b, strict=True)]))


def unit(a: Array) -> Array:
    return np.stack([row / np.linalg.norm(row) for row in a.astype(np.float64)])


def cosine(a: Array, b: Array) -> float:
    return float(np.mean([x @ y for x, y in zip(unit(a), unit(b), strict=True)]))


def k_reciprocal_by_sets(maps: list[Array], k1: int, k2: int, lambda_value: float) -> list[float]:
    """d* of the first to the others: Eq. (2) to (12) with sets and loops."""
    everybody = range(len(maps))
    d = [[distance(maps[i], maps[j]) for j in everybody] for i in everybody]
    d = [[value / (max(row) or 1.0) for value in row] for row in d]
    ranked = [sorted(everybody, key=lambda j, i=i: (d[i][j], j != i)) for i in everybody]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in ranked[i][: k + 1] if i in ranked[j][: k + 1]}

    v = []
    for i in everybody:
        expanded = mutual(i, k1)
        for q in mutual(i, k1):
            theirs = mutual(q, round(k1 / 2))
            if len(mutual(i, k1) & theirs) > 2 / 3 * len(theirs) + 1e-9:
                expanded |= theirs
        weights = {j: math.exp(-d[i][j]) for j in expanded}
        v.append([weights.get(j, 0.0) / sum(weights.values()) for j in everybody])
    if k2 > 1:
        v = [[float(np.mean([v[q][j] for q in ranked[i][:k2]])) for j in everybody] for i in everybody]
    found = []
    for g in everybody[1:]:
        jaccard = 1 - sum(map(min, v[0], v[g])) / sum(map(max, v[0], v[g]))
        found.append((1 - lambda_value) * jaccard + lambda_value * d[0][g])
    return found


def lbr_by_loops(maps: list[Array], sigma: float) -> list[float]:
    blurred = []
    for x in maps:
        w = [math.exp(cosine(x, y) / sigma) for y in maps]
        blurred.append(sum(share / sum(w) * y.astype(np.float64) for share, y in zip(w, maps, strict=True)))
    return [distance(blurred[0], each) for each in blurred[1:]]


def gcr_by_loops(maps: list[Array], k: int, gamma: float, layers: int) -> list[float]:
    x = [unit(each) for each in maps]
    everybody = range(len(x))
    squared = [[float(np.mean(((x[i] - x[j]) ** 2).sum(-1))) for j in everybody] for i in everybody]
    near = [set(sorted(everybody, key=lambda j, i=i: squared[i][j])[: k + 1]) for i in everybody]
    a = [
        [math.exp(-squared[i][j] / gamma) if j in near[i] or i in near[j] else 0.0 for j in everybody]
        for i in everybody
    ]
    degree = [sum(row) for row in a]
    for _ in range(layers):
        x = [unit(sum(a[i][j] / math.sqrt(degree[i] * degree[j]) * x[j] for j in everybody)) for i in everybody]
    return [distance(x[0], each) for each in x[1:]]


def query_expansion_by_loops(maps: list[Array], n: int, alpha: float) -> list[float]:
    x = [unit(each) for each in maps]
    products = [cosine(x[0], each) for each in x[1:]]
    nearest = sorted(range(len(products)), key=lambda j: -products[j])[:n]
    query = unit(x[0] + sum(max(products[j], 0.0) ** alpha * x[1 + j] for j in nearest))
    return [distance(query, each) for each in x[1:]]


BY_DEFINITION: dict[str, Callable[..., list[float]]] = {
    "none": lambda maps: [distance(maps[0], each) for each in maps[1:]],
    "k-reciprocal": k_reciprocal_by_sets,
    "lbr": lbr_by_loops,
    "gcr": gcr_by_loops,
    "query-expansion": query_expansion_by_loops,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "k-reciprocal": [
        {"k1": k1, "k2": k2, "lambda_value": value}
        for k1, k2, value in ((20, 6, 0.3), (4, 3, 0.3), (6, 1, 0.0), (3, 2, 1.0), (5, 5, 0.5), (1, 1, 0.1))
    ],
    "lbr": [{"sigma": 0.02}, {"sigma": 0.3}],
    "gcr": [
        {"k": 5, "gamma": 0.2, "layers": 2},
        {"k": 2, "gamma": 1.0, "layers": 3},
        {"k": 50, "gamma": 0.5, "layers": 1},
    ],
    "query-expansion": [{"n": 3, "alpha": 3.0}, {"n": 1, "alpha": 0.0}, {"n": 50, "alpha": 1.5}],
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_its_definition(name: str) -> None:
    for seed in range(12):
        probe, candidates = lists(seed, n=2, k=(1, 2, 5, 9, 14)[seed % 5])
        for options in OPTIONS[name]:
            found = rerankers.create(name, **options).rescore(probe, candidates)
            assert found.dtype == np.float32 and found.shape == candidates.shape[:2]
            for row in range(len(probe)):
                wanted = BY_DEFINITION[name]([probe[row], *candidates[row]], **options)
                np.testing.assert_allclose(found[row], wanted, rtol=2e-5, atol=2e-6, err_msg=f"{options}, seed {seed}")


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_the_documented_ones(name: str) -> None:
    probe, candidates = lists(3)
    same = rerankers.create(name, **OPTIONS[name][0])
    assert same.name == name and rerankers.create(name) == same
    assert np.array_equal(rerankers.create(name).rescore(probe, candidates), same.rescore(probe, candidates))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", ["defaults", "tight"])
def test_the_order_of_the_list_changes_nothing(name: str, options: str) -> None:
    chosen = rerankers.create(name, **(TIGHT[name] if options == "tight" else {}))
    for seed in range(10):
        probe, candidates = lists(seed)
        order = np.random.default_rng(seed + 100).permutation(candidates.shape[1])
        found = chosen.rescore(probe, candidates)
        np.testing.assert_allclose(chosen.rescore(probe, candidates[:, order]), found[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_batch_mates_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = rerankers.create(name, **TIGHT[name])
    probe, candidates = lists(5, n=9)
    together = chosen.rescore(probe, candidates)
    for row in range(9):
        alone = chosen.rescore(probe[row : row + 1], candidates[row : row + 1])[0]
        np.testing.assert_allclose(alone, together[row], rtol=1e-6, atol=1e-7)
    monkeypatch.setattr("gaitsdk.rerankers.base._BLOCK", 13 * 3 * 13 * 2)  # two lists at a time
    np.testing.assert_allclose(chosen.rescore(probe, candidates), together, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_short_lists(name: str) -> None:
    chosen = rerankers.create(name)  # k1 = 20 and the like: more than there are
    probe, candidates = lists(7, k=12)
    for k in (1, 2, 3):
        found = chosen.rescore(probe, candidates[:, :k])
        assert found.shape == (3, k) and np.isfinite(found).all() and (found >= 0).all()
    assert chosen.rescore(probe, candidates[:, :0]).shape == (3, 0)
    assert chosen.rescore(probe[:0], candidates[:0]).shape == (0, 12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", ["defaults", "tight"])
def test_equal_candidates_get_equal_distances(name: str, options: str) -> None:
    chosen = rerankers.create(name, **(TIGHT[name] if options == "tight" else {}))
    for seed in range(10):
        probe, candidates = lists(seed)
        candidates[:, 7] = candidates[:, 2]
        candidates[:, 4] = candidates[:, 2]
        found = chosen.rescore(probe, candidates)
        np.testing.assert_allclose(found[:, [4, 7]], found[:, [2, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_who_looks_like_the_probe_is_first(name: str) -> None:
    for seed in range(10):
        probe, candidates = lists(seed)
        candidates[:, 5] = probe
        found = rerankers.create(name).rescore(probe, candidates)
        assert (found.argmin(axis=1) == 5).all() or np.allclose(found.min(axis=1), found[:, 5], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e15])
def test_features_that_are_all_the_same_keep_their_order(name: str, value: float) -> None:
    same = np.full((2, 30, 3, 5), value, np.float32)
    # Its matrix products may round columns differently: seen with OpenBLAS on a CPU without AVX-512.
    rounding = 1e-6 if name == "k-reciprocal" else 0
    for options in ({}, TIGHT[name]):
        found = rerankers.create(name, **options).rescore(same[:, 0], same)
        assert np.isfinite(found).all() and np.ptp(found) <= rounding
        full = rerankers.create(name, "full", **options).rescore_all(same[0, :2], same[0])
        assert full.shape == (2, 30) and np.isfinite(full).all()


@pytest.mark.parametrize("name", ["k-reciprocal", "gcr", "query-expansion"])
def test_the_unit_of_the_features_does_not_matter(name: str) -> None:
    probe, candidates = lists(1)
    chosen = rerankers.create(name, **TIGHT[name])
    found = chosen.rescore(probe, candidates)
    for factor in (1e-6, 1e6):
        np.testing.assert_allclose(chosen.rescore(factor * probe, factor * candidates), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_gallery_of_one_list_is_that_list(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1 << 23, 64):  # the sparse form goes through several blocks of rows
        monkeypatch.setattr("gaitsdk.rerankers.reciprocal_graph._BLOCK", block)
        for seed in range(6):
            probe, candidates = lists(seed, n=1, k=25)
            for options in (*OPTIONS[name], TIGHT[name]):
                by_list = rerankers.create(name, **options).rescore(probe, candidates)
                full = rerankers.create(name, "full", **options).rescore_all(probe, candidates[0])
                assert full.dtype == np.float32
                np.testing.assert_allclose(full, by_list, rtol=2e-5, atol=2e-5, err_msg=f"{options}")


@pytest.mark.parametrize("name", ["k-reciprocal", "gcr"])
def test_the_full_scope_sees_the_other_probes(name: str) -> None:
    (first, gallery), (more, _) = lists(2, n=1, k=20), lists(9, n=6)
    chosen = rerankers.create(name, "full", **TIGHT[name])
    alone, among = chosen.rescore_all(first, gallery[0]), chosen.rescore_all(np.concatenate([first, more]), gallery[0])
    assert not np.allclose(alone[0], among[0])
    # Their order does not matter, nor that of the gallery.
    turned = chosen.rescore_all(np.concatenate([more, first]), gallery[0][::-1])
    np.testing.assert_allclose(turned[-1, ::-1], among[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["none", "lbr", "query-expansion"])
def test_the_full_scope_of_the_others_is_a_probe_at_a_time(name: str) -> None:
    probes, _ = lists(4, n=70)
    gallery = lists(4, n=1, k=40)[1][0]
    chosen = rerankers.create(name, "full", **TIGHT[name])
    together = chosen.rescore_all(probes, gallery)
    alone = np.concatenate([chosen.rescore_all(each[None], gallery) for each in probes])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def test_lbr_leaves_those_beyond_its_list_behind_it_in_their_order() -> None:
    probes, _ = lists(6, n=5)
    gallery = np.concatenate([lists(6, n=1, k=40)[1][0], probes[:1]])
    before, after = (
        rerankers.create(name, "full", **options).rescore_all(probes, gallery)
        for name, options in (("none", {}), ("lbr", {"n": 7, "sigma": 0.2}))
    )
    for row in range(5):
        old, new = np.argsort(before[row], kind="stable"), np.argsort(after[row], kind="stable")
        assert set(old[:7]) == set(new[:7]) and list(old[7:]) == list(new[7:])
        listed = rerankers.create("lbr", sigma=0.2).rescore(probes[row, None], gallery[old[:7]][None])[0]
        np.testing.assert_allclose(after[row, old[:7]], listed, rtol=1e-6)


def test_none_is_the_shortlists_distance() -> None:
    probe, candidates = lists(0)
    found = rerankers.create("none").rescore(probe, candidates)
    for row in range(3):
        np.testing.assert_allclose(found[row], paired(np.repeat(probe[row, None], 12, 0), candidates[row]), rtol=1e-6)
    everybody = rerankers.create("none", "full").rescore_all(probe, candidates[0])
    assert np.array_equal(everybody, pairwise(probe, candidates[0]))


def test_lambda_one_is_no_reranking() -> None:
    probe, candidates = lists(0, k=30)
    found = rerankers.create("k-reciprocal", lambda_value=1).rescore(probe, candidates)
    plain = rerankers.create("none").rescore(probe, candidates)
    np.testing.assert_allclose(found / found[:, :1], plain / plain[:, :1], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_other_options_are_another_name(name: str) -> None:
    option, value = next(iter(TIGHT[name].items()))
    chosen = rerankers.create(name, **{option: value})
    assert chosen.name == f"{name}({option}={value!r})"
    assert not rerankers.compares_pairs(chosen.name) and not rerankers.compares_pairs(name)
    assert isinstance(chosen, rerankers.Reranker) and chosen.scope == "list"
    assert rerankers.create(name, "full").name == name


def test_unknown_names_and_options_say_what_is_near() -> None:
    with pytest.raises(OptionError, match=r"unknown re-ranker.*did you mean 'k-reciprocal'"):
        rerankers.create("k-recipocal")
    with pytest.raises(OptionError, match=r"unknown re-ranker.*query-expansion"):
        rerankers.create("magic")
    with pytest.raises(OptionError, match=r"'k_1'.*k1 or k2 or lambda_value.*did you mean 'k1'"):
        rerankers.create("k-reciprocal", k_1=3)
    with pytest.raises(OptionError, match="no option at all"):
        rerankers.create("none", k=3)
    with pytest.raises(OptionError, match=r"scope.*list or full"):
        rerankers.create("lbr", scope="all")
    with pytest.raises(OptionError, match="needs its bundle"):
        rerankers.create("cargait")
    bad: dict[str, dict[str, list[object]]] = {
        "k-reciprocal": {"k1": [0, 1.5, True, "3", None], "k2": [0, -1], "lambda_value": [-0.1, 1.1, math.nan, "x"]},
        "lbr": {"sigma": [0, -1.0, math.nan, math.inf], "n": [0, 2.5]},
        "gcr": {"k": [0], "gamma": [0.0, math.nan], "layers": [0, 101, 1.0]},
        "query-expansion": {"n": [0, False], "alpha": [-1, math.inf]},
    }
    for name, options in bad.items():
        for option, values in options.items():
            for value in values:
                with pytest.raises(OptionError, match=f"'{option}' is impossible"):
                    rerankers.create(name, **{option: value})


@pytest.mark.parametrize("name", NAMES)
def test_bad_features_are_refused(name: str) -> None:
    probe, candidates = lists(0)
    chosen = rerankers.create(name)
    nan = candidates.copy()
    nan[1, 2, 0, 0] = np.nan
    for p, c, says in (
        (probe, nan, "NaN"),
        (probe, candidates[..., :4], r"\[3, n, 3, 5\]"),
        (probe[:2], candidates, r"\[2, n, 3, 5\]"),
        (probe[0], candidates, "probe"),
        (probe, candidates[0], "candidates"),
        (probe.astype(int), candidates, "floating-point"),
    ):
        with pytest.raises(InputError, match=says):
            chosen.rescore(p, c)
    full = rerankers.create(name, "full")
    with pytest.raises(InputError, match="gallery"):
        full.rescore_all(probe, candidates)
    with pytest.raises(InputError, match="NaN"):
        full.rescore_all(probe, nan[1])
    assert full.rescore_all(probe, candidates[0][:0]).shape == (3, 0)
