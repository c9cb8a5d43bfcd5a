"""The verdict on people: Rank-1 and the order of the first ten."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gaitsdk_export.task import TOP, Trial, compare

N, M = 20, 30
LABELS = np.arange(N)


def table():
    """Distances [N, M] in which everybody finds himself first, and no two are close."""
    random = np.random.default_rng(5)
    distances = np.stack([random.permutation(M) + 2.0 for _ in range(N)])
    distances[LABELS, LABELS] = 1.0
    return distances


def test_the_same_table_passes_in_every_precision():
    for precision in ("fp32", "fp16", "bf16"):
        figures = compare(table(), table(), LABELS, precision)
        assert (figures.rank1_eager, figures.rank1, figures.same_order, figures.reasons) == (100, 100, 1, ())
        json.dumps(figures.to_dict())


def test_one_person_lost_fails():
    found = table()
    found[3, 3] = 99.0
    figures = compare(table(), found, LABELS, "fp16")
    assert figures.rank1 == pytest.approx(100 - 100 / N)
    assert any("Rank-1 95.0 % instead of 100.0 %" in each for each in figures.reasons)


def test_one_person_found_that_was_not_fails_too():
    """Another answer is another answer, also where it is the better one."""
    reference = table()
    reference[3, 3] = 99.0
    assert compare(reference, table(), LABELS, "fp32").reasons


def test_a_swap_among_the_first_ten_fails_in_fp32_and_one_behind_them_does_not():
    reference, found = table(), table()
    order = np.argsort(reference[0])
    found[0, order[[4, 5]]] = reference[0, order[[5, 4]]]
    assert "in the same order" in compare(reference, found, LABELS, "fp32").reasons[0]
    found = table()
    found[0, order[[20, 21]]] = reference[0, order[[21, 20]]]
    assert compare(reference, found, LABELS, "fp32").reasons == ()
    found[0, order[[TOP - 1, TOP]]] = reference[0, order[[TOP, TOP - 1]]]  # somebody else is among the first ten
    assert compare(reference, found, LABELS, "fp32").reasons


def test_a_swap_within_rounding_is_none():
    reference, found = table(), table()
    order = np.argsort(reference[0])
    reference[0, order[5]] = reference[0, order[4]] + 1e-6
    found[0, order[5]], found[0, order[4]] = reference[0, order[4]], reference[0, order[5]]
    assert compare(reference, found, LABELS, "fp32").reasons == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_zero_references_do_not_pass(value):
    found = table()
    found[2, 7] = value
    assert compare(table(), found, LABELS, "fp16").reasons == ("distances are NaN or infinite",)
    zero = np.zeros((N, M))  # a network that answers nothing: whoever is first by position
    assert compare(zero, table(), LABELS, "fp32").reasons


def backbone(walks):
    """Features of walks: means of the rows of the picture over all frames, [B, 4, 16]."""
    return [walks.astype(np.float32).mean(axis=(1, 3)).reshape(len(walks), 4, 16)]


def reranker(probe, candidates):
    distances = np.abs(probe[:, None] - candidates).mean(axis=(2, 3))
    return [distances, np.argsort(distances, axis=1, kind="stable")]


@pytest.fixture(scope="module")
def trial():
    return Trial(backbone, reranker, 64, identities=15, frames=2)


def test_a_trial_of_the_networks_themselves_passes(trial):
    for role, network in (("backbone", lambda x: backbone(x)), ("reranker", lambda p, c: reranker(p, c))):
        figures = trial.judge(role, network, "fp32")
        assert figures.reasons == () and figures.identities == 15
        assert figures.rank1 == figures.rank1_eager and figures.same_order == 1.0


def test_a_trial_of_other_networks_fails(trial):
    def upside_down(walks):
        return [backbone(walks)[0] * np.linspace(5, -5, 16, dtype=np.float32)]

    def backwards(probe, candidates):
        distances, order = reranker(probe, candidates)
        return [-distances, order]

    assert trial.judge("backbone", upside_down, "fp16").reasons
    assert trial.judge("reranker", backwards, "fp16").reasons


def test_the_shipped_bundle_in_bf16_on_a_cpu_passes_both_verdicts():
    """`runtime="torch-bf16"`, the fastest whose answers pass on a CPU with bf16 instructions (docs/export.md)."""
    pytest.importorskip("torch")
    from gaitsdk.bundle import Bundle
    from gaitsdk.runtimes import open_runtime
    from gaitsdk_export import parity
    from gaitsdk_export.cases import embedder_cases
    from gaitsdk_export.eager import eager_network
    from gaitsdk_export.wrappers import EmbedderForExport

    bundle = Bundle.load()
    spec = bundle.manifest.input
    eager = eager_network(EmbedderForExport(bundle.build_backbone(), spec.size, spec.channels))
    runtime = open_runtime(bundle, runtime="torch-bf16", device="cpu", threads=1)

    def rounded(walks):
        return [runtime.embed(np.asarray(walks))]

    cases = embedder_cases(spec.size, spec.channels)
    report = parity.check(eager, rounded, cases, parity.TOLERANCES["bf16"])
    assert report.verdict is parity.Verdict.OK, report.reasons
    assert report.max_abs > 1e-4, "nothing was rounded"
    figures = Trial(eager, None, spec.size, spec.channels, bundle.metric).judge("backbone", rounded, "bf16")
    assert figures.reasons == () and figures.identities == 100
