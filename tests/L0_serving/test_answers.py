"""The server's answers are the answers of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import CalibrationError, InputError, RuntimeUnavailableError, UnknownIdentityError
from gaitsdk.results import Identification
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer

KINDS = ("nm-03", "nm-04", "bg-01", "cl-01")


@pytest.fixture(scope="module")
def walk() -> Callable[..., np.ndarray]:
    return lambda identity, kind="nm-03", frames=12: synthetic.sequence(identity, type=kind, frames=frames)


@pytest.fixture(scope="module")
def probes(walk: Callable[..., np.ndarray]) -> list[np.ndarray]:
    """200 walks of enrolled people and of strangers, of many lengths."""
    random = np.random.default_rng(11)
    return [walk(int(random.integers(40)), KINDS[i % 4], int(random.integers(8, 31))) for i in range(200)]


def assert_same(here: Identification, there: Identification) -> None:
    assert [each.entry_id for each in there.candidates] == [each.entry_id for each in here.candidates]
    assert [each.identity for each in there.candidates] == [each.identity for each in here.candidates]
    assert [each.shortlist_rank for each in there.candidates] == [each.shortlist_rank for each in here.candidates]
    for name in ("distance", "shortlist_distance"):
        expected = [getattr(each, name) for each in here.candidates]
        np.testing.assert_allclose([getattr(each, name) for each in there.candidates], expected, atol=1e-4)
    assert (there.decision, there.known, there.threshold) == (here.decision, here.known, here.threshold)
    assert (there.fingerprint, there.reranker) == (here.fingerprint, here.reranker)


def test_the_description_is_that_of_the_bundle(local: Recognizer, remote: Recognizer, over_http: Recognizer) -> None:
    assert remote.description == local.description == over_http.description


def test_200_probes_over_grpc(local: Recognizer, remote: Recognizer, probes: list[np.ndarray]) -> None:
    expected, answers = local.identify_many(probes, top_k=15), remote.identify_many(probes, top_k=15)
    for here, there in zip(expected, answers, strict=True):
        assert_same(here, there)
        assert len(there.candidates) == 15
    assert {each.decision for each in answers} == {"known", "unknown"}
    reordered = sum(each.candidates[0].shortlist_rank != 1 for each in answers)
    assert reordered > 20, "re-ranking changes nothing here, so the test says little"


def test_probes_over_http(local: Recognizer, over_http: Recognizer, probes: list[np.ndarray]) -> None:
    for here, there in zip(local.identify_many(probes[:40]), over_http.identify_many(probes[:40]), strict=True):
        assert_same(here, there)


@pytest.mark.parametrize(("top_k", "k"), [(1, 10), (3, 2), (20, 5), (10, 40), (1000, 1)])
def test_request_parameters_reach_every_step(
    local: Recognizer, remote: Recognizer, over_http: Recognizer, probes: list[np.ndarray], top_k: int, k: int
) -> None:
    threshold = local.identify(probes[0], top_k=top_k, k=k, threshold=1).candidates[0].distance
    for cut, decision in ((threshold + 0.01, "known"), (max(threshold - 0.01, 0), "unknown")):
        expected = local.identify(probes[0], top_k=top_k, k=k, threshold=cut)
        for recognizer in (remote, over_http):
            answer = recognizer.identify(probes[0], top_k=top_k, k=k, threshold=cut)
            assert_same(expected, answer)
            assert answer.decision == decision
            assert len(answer.candidates) == min(top_k, local.count)


def test_a_calibration_for_another_k_is_refused_here_and_there(
    local: Recognizer, remote: Recognizer, probes: list[np.ndarray]
) -> None:
    for recognizer in (local, remote):
        with pytest.raises(CalibrationError, match="K=3"):
            recognizer.identify(probes[0], k=3)


def test_embed_search_rerank_verify(local: Recognizer, remote: Recognizer, probes: list[np.ndarray]) -> None:
    features = local.embed(probes[:12])
    np.testing.assert_allclose(remote.embed(probes[:12]), features, atol=1e-4)
    ids, distances = local.search(features, 7)
    found, found_distances = remote.search(features, 7)
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_allclose(found_distances, distances, atol=1e-4)
    candidates = np.stack([features[1:6], features[2:7]])
    np.testing.assert_allclose(
        remote.rerank(features[:2], candidates), local.rerank(features[:2], candidates), atol=1e-4
    )
    here, there = local.verify(probes[0], probes[1]), remote.verify(probes[0], probes[1])
    assert there.distance == pytest.approx(here.distance, abs=1e-4)
    assert (there.decision, there.threshold) == (here.decision, here.threshold)
    assert here.threshold is not None


def test_enrol_list_delete(
    local: Recognizer, remote: Recognizer, over_http: Recognizer, walk: Callable[..., np.ndarray]
) -> None:
    name = "Zoë / 志明"
    before = remote.count
    entries = remote.enroll(name, [walk(77, "nm-01", 9), walk(77, "nm-02", 26), walk(77, "bg-01", 14)])
    assert len(set(entries)) == 3
    assert remote.count == before + 3 == local.count, "an acknowledged enrolment is in the file"
    assert name in remote.identities() and remote.identities() == local.identities()
    for recognizer in (remote, over_http, local):
        # The shortlist's nearest entry is the very sequence that was enrolled, in the next request.
        nearest = min(recognizer.identify(walk(77, "nm-01", 9)).candidates, key=lambda each: each.shortlist_rank)
        assert (nearest.identity, nearest.entry_id) == (name, entries[0])
        assert nearest.shortlist_distance == pytest.approx(0, abs=1e-3)
    assert over_http.delete(name) == 3
    assert name not in remote.identities()
    assert all(each.identity != name for each in remote.identify(walk(77, "nm-01", 9), top_k=50).candidates)
    with pytest.raises(UnknownIdentityError, match="Zoë"):
        remote.delete(name)


def test_many_threads_share_a_client(
    local: Recognizer, remote: Recognizer, over_http: Recognizer, probes: list[np.ndarray]
) -> None:
    expected = local.identify_many(probes[:24])
    failures: list[BaseException] = []

    def ask(recognizer: Recognizer, first: int) -> None:
        try:
            for i in range(first, 24, 8):
                assert_same(expected[i], recognizer.identify(probes[i]))
        except BaseException as error:  # noqa: BLE001 - carried to the main thread
            failures.append(error)

    threads = [
        threading.Thread(target=ask, args=(recognizer, first))
        for first in range(8)
        for recognizer in (remote, over_http)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_without_reranker_as_in_process(
    installation: Installation, settings: Settings, probes: list[np.ndarray], tmp_path: Path
) -> None:
    """The bundle has one, and calibrations for it only: they must not be used for other distances."""
    repository = render(settings.bundle, tmp_path / "models", Options(reranker="none"))
    with (
        TritonServer(repository, settings, installation=installation) as server,
        Recognizer.connect(server.grpc_url, timeout=60) as remote,
        Recognizer.load(
            settings.bundle, runtime="torch", device="cpu", gallery=settings.gallery, threads=1, reranker="none"
        ) as local,
    ):
        assert remote.description == local.description
        assert (remote.description.reranker, remote.description.k) == ("none", 0)
        for recognizer in (local, remote):
            with pytest.raises(CalibrationError, match="reranker=none"):
                recognizer.identify(probes[0])
            with pytest.raises(CalibrationError, match="reranker=none"):
                recognizer.verify(probes[0], probes[1])
        for length in (None, 5):
            here, there = (each.identify_many(probes[:10], k=length, threshold=1) for each in (local, remote))
            for expected, answer in zip(here, there, strict=True):
                assert_same(expected, answer)
                assert [each.shortlist_rank for each in answer.candidates] == list(range(1, 11))
        here, there = (each.verify(probes[0], probes[1], threshold=1) for each in (local, remote))
        assert there.distance == pytest.approx(here.distance, abs=1e-4)
        features = local.embed(probes[:3])
        np.testing.assert_array_equal(remote.search(features, 7)[0], local.search(features, 7)[0])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_closed_recognizer_says_so_in_every_thread(
    server: TritonServer, probes: list[np.ndarray], scheme: str
) -> None:
    recognizer = Recognizer.connect(f"{scheme}://127.0.0.1:{getattr(server, f'{scheme}_port')}", timeout=60)
    used, closed = threading.Barrier(3), threading.Event()
    caught: list[BaseException] = []

    def ask() -> None:
        recognizer.embed(probes[0])
        used.wait(30)
        closed.wait(30)
        try:
            recognizer.embed(probes[0])
        except BaseException as error:  # noqa: BLE001 - looked at below
            caught.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    used.wait(30)
    recognizer.close()
    closed.set()
    for thread in threads:
        thread.join(30)
    assert [type(each) for each in caught] == [RuntimeUnavailableError] * 2
    for call in (lambda: recognizer.identify(probes[0]), recognizer.identities, lambda: recognizer.count):
        with pytest.raises(RuntimeUnavailableError, match="the recognizer was closed; connect again"):
            call()
    recognizer.close()  # once more does nothing


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_closing_while_another_thread_asks(server: TritonServer, probes: list[np.ndarray], scheme: str) -> None:
    recognizer = Recognizer.connect(f"{scheme}://127.0.0.1:{getattr(server, f'{scheme}_port')}", timeout=60)
    long = np.resize(probes[0], (900, 64, 64))
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                recognizer.embed(long)
        except BaseException as error:  # noqa: BLE001 - looked at below
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    recognizer.close()
    thread.join(30)
    assert [type(each) for each in caught] == [RuntimeUnavailableError]


def test_typed_errors_cross_the_wire_unchanged(local: Recognizer, remote: Recognizer) -> None:
    for recognizer in (local, remote):
        with pytest.raises(InputError, match=r"identit.*blank"):
            recognizer.enroll("", synthetic.sequence(1, frames=9))
