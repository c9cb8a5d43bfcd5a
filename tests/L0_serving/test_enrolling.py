"""Enrolment while the server identifies: durable before the answer, visible to the next question, searches go on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.async_recognizer import AsyncRecognizer
from gaitsdk.bundle import Bundle
from gaitsdk.errors import GalleryBehindError, GalleryError, OptionError, ServerError
from gaitsdk.gallery import Gallery
from gaitsdk.gallery.stores import open_for
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer

KILLS = 20
WALK = synthetic.sequence(61, type="nm-01", frames=12)


@pytest.fixture(params=["grpc", "http", "in-process"])
def recognizer(request: pytest.FixtureRequest, server: TritonServer, settings: Settings) -> Iterator[Recognizer]:
    """A new one, which has enrolled nobody yet."""
    if request.param == "in-process":
        opened = Recognizer.load(settings.bundle, runtime="torch", device="cpu", gallery=settings.gallery, threads=1)
    else:
        opened = Recognizer.connect(getattr(server, f"{request.param}_url"), timeout=60)
    with opened:
        yield opened


def nearest(recognizer: Recognizer, walk: np.ndarray, **options: Any) -> str:
    """Who the shortlist puts first."""
    found = recognizer.identify(walk, top_k=20, **options)
    return min(found.candidates, key=lambda each: each.shortlist_rank).identity


def test_every_answer_of_the_gallery_carries_the_commit_number(server: TritonServer, local: Recognizer) -> None:
    client = pytest.importorskip("tritonclient.grpc")

    def ask(action: str, **arrays: np.ndarray) -> int:
        inputs = []
        for name, array in {"action": np.array([action.encode()], object), **arrays}.items():
            kind = {"object": "BYTES", "uint8": "UINT8", "int64": "INT64"}[array.dtype.name]
            inputs.append(client.InferInput(name, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array)
        return int(raw.infer("gallery", inputs).as_numpy("sequence")[0])

    name, before = np.array([b"commit"], object), local.gallery_sequence
    raw = client.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    assert [ask(action) for action in ("list", "count", "describe")] == [before] * 3
    enrolled = ask("enroll", identity=name, silhouettes=WALK, lengths=np.array([5, 7], np.int64))
    assert enrolled == local.gallery_sequence == before + 1, "one commit for both walks, in the file when answered"
    assert "commit" in local.identities()
    assert ask("delete", identity=name) == before + 2
    assert ask("thumbnails", entry_id=np.zeros(0, np.int64)) == before + 2
    raw.close()


def test_own_changes_are_in_the_next_answer(recognizer: Recognizer) -> None:
    before = recognizer.gallery_sequence
    recognizer.enroll("own", WALK)
    result = recognizer.identify(WALK)
    assert min(result.candidates, key=lambda each: each.shortlist_rank).identity == "own"
    assert result.gallery_sequence == result.to_dict()["gallery_sequence"] == before + 1
    recognizer.delete("own")
    assert nearest(recognizer, WALK) != "own"
    assert recognizer.search(recognizer.embed(WALK), 1)[0].shape == (1, 1)


def test_what_somebody_else_enrolled_is_seen_with_their_commit_number(
    recognizer: Recognizer, remote: Recognizer, server: TritonServer
) -> None:
    remote.enroll("other", WALK)
    try:
        reached = remote.gallery_sequence
        assert nearest(recognizer, WALK, min_sequence=reached) == "other"
        assert [each.gallery_sequence for each in recognizer.identify_many([WALK, WALK[:9]], min_sequence=reached)] == [
            reached
        ] * 2

        async def ask() -> str:
            async with AsyncRecognizer.connect(server.http_url, timeout=60) as rec:
                assert await rec.gallery_sequence() == reached
                features = await rec.embed(WALK)
                ids, _ = await rec.search(features, 1, min_sequence=reached)
                found = await rec.identify(WALK, top_k=20, min_sequence=reached)
                first = min(found.candidates, key=lambda each: each.shortlist_rank)
                assert ids[0, 0] == first.entry_id
                return first.identity

        assert asyncio.run(ask()) == "other"
    finally:
        remote.delete("other")


def test_a_commit_that_is_not_there_is_refused_and_may_be_asked_for_again(recognizer: Recognizer) -> None:
    ahead = recognizer.gallery_sequence + 1
    features = recognizer.embed(WALK)
    for ask in (
        lambda: recognizer.identify(WALK, min_sequence=ahead),
        lambda: recognizer.search(features, 1, min_sequence=ahead),
    ):
        with pytest.raises(GalleryBehindError, match=f"got commit {ahead - 1}.*expected {ahead}") as caught:
            ask()
        assert caught.value.retryable and isinstance(caught.value, GalleryError)
    for wrong in (-1, True, 1.5, "7", float("nan")):
        with pytest.raises(OptionError, match="min_sequence"):
            recognizer.identify(WALK, min_sequence=wrong)
    recognizer.enroll("later", WALK)
    assert nearest(recognizer, WALK, min_sequence=ahead) == "later"
    recognizer.delete("later")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_clients_ask_again_until_the_commit_is_there(server: TritonServer, local: Recognizer, scheme: str) -> None:
    with Recognizer.connect(getattr(server, f"{scheme}_url"), timeout=60, retries=6) as recognizer:
        ahead = recognizer.gallery_sequence + 1
        late = threading.Timer(0.3, lambda: local.enroll("late", WALK))
        late.start()
        assert nearest(recognizer, WALK, min_sequence=ahead) == "late"
        late.join()
    local.delete("late")


def test_a_client_that_enrolled_refuses_an_older_copy_of_the_gallery(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back under the server, an old copy would else give answers without the enrolment, as if it never was."""
    with Recognizer.connect(server.grpc_url, timeout=60, retries=0) as recognizer:
        recognizer.enroll("own", WALK)
        recognizer.delete("own")
        told = recognizer._engine._talk  # type: ignore[attr-defined]
        assert told.changed == recognizer.gallery_sequence
        monkeypatch.setattr(told, "changed", told.changed + 1)
        with pytest.raises(GalleryBehindError, match="older copy"):
            recognizer.identify(WALK)


def test_threads_of_one_client_each_see_what_they_enrolled(server: TritonServer) -> None:
    walks = [synthetic.sequence(70 + i, type="nm-01", frames=10) for i in range(6)]
    failures: list[BaseException] = []
    with Recognizer.connect(server.grpc_url, timeout=60) as recognizer:

        def work(i: int) -> None:
            try:
                for _ in range(3):
                    recognizer.enroll(f"thread-{i}", walks[i])
                    assert nearest(recognizer, walks[i]) == f"thread-{i}"
                    assert recognizer.delete(f"thread-{i}") == 1
                    assert nearest(recognizer, walks[i]) != f"thread-{i}"
            except BaseException as error:  # noqa: BLE001 - carried to the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(walks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]


WRITER = """
import sys, time
import numpy as np
from gaitsdk.gallery import Gallery
with Gallery.open(sys.argv[1], create=False) as gallery:
    features = np.load(sys.argv[2])
    for i in range(100):
        gallery.add("written", features + np.float32(0.01 * i))
        time.sleep(0.005)
"""


def test_answers_follow_a_process_that_writes_into_the_file(
    remote: Recognizer, settings: Settings, tmp_path: Path
) -> None:
    """Each answer holds what was committed when it was asked for, and answers never go back in time."""
    np.save(tmp_path / "features.npy", remote.embed(WALK))
    before, count = remote.gallery_sequence, remote.count
    command = [sys.executable, "-c", WRITER, str(settings.gallery), str(tmp_path / "features.npy")]
    with subprocess.Popen(command) as writer, open_for(Bundle.load(settings.bundle), settings.gallery) as gallery:
        seen = [before]
        while writer.poll() is None:
            committed = gallery.sequence
            result = remote.identify(WALK, min_sequence=committed)
            assert result.gallery_sequence >= max(seen[-1], committed)
            if committed > before:
                assert min(result.candidates, key=lambda each: each.shortlist_rank).identity == "written"
            seen.append(result.gallery_sequence)
        assert writer.returncode == 0
        try:
            assert remote.identify(WALK).gallery_sequence == before + 100 and remote.count == count + 100
            assert len(set(seen)) > 3, "the answers did not follow"
        finally:
            gallery.delete(identity="written")


@pytest.mark.serving
@pytest.mark.timeout(900)
def test_what_was_acknowledged_survives_kills_of_the_whole_server(installation: Installation, tmp_path: Path) -> None:
    """kill -9 of the server and all of its models at once, while two clients enrol."""
    settings = Settings(gallery=str(tmp_path / "people.db"), threads=1)
    prepare_gallery(settings)
    repository = render(None, tmp_path / "models", Options(reranker="none"))
    dice, acknowledged = random.Random(5), dict[str, list[int]]()
    for kill in range(KILLS):
        with TritonServer(repository, settings, installation=installation) as server:
            threads = [
                threading.Thread(target=enroll_until_it_dies, args=(server, f"{kill}-{i}", acknowledged))
                for i in range(2)
            ]
            known = len(acknowledged)
            for thread in threads:
                thread.start()
            while len(acknowledged) == known and any(thread.is_alive() for thread in threads):
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.2))
            os.killpg(server.pid, signal.SIGKILL)
            for thread in threads:
                thread.join(30)
        with open_for(Bundle.load(None), settings.gallery) as gallery:
            check_after_kill(gallery, acknowledged, in_flight=2 * (kill + 1))
    assert len(acknowledged) >= KILLS
    with TritonServer(repository, settings, installation=installation) as server:
        with Recognizer.connect(server.grpc_url, timeout=60) as recognizer:
            assert set(acknowledged) <= set(recognizer.identities())
            assert recognizer.identify(WALK, threshold=1).candidates[0].shortlist_distance == pytest.approx(0, abs=1e-3)


def enroll_until_it_dies(server: TritonServer, prefix: str, acknowledged: dict[str, list[int]]) -> None:
    with Recognizer.connect(server.grpc_url, timeout=20) as recognizer:
        for i in range(10_000):
            try:
                acknowledged[f"{prefix}-{i}"] = recognizer.enroll(f"{prefix}-{i}", [WALK, WALK[:9]])
            except ServerError:
                return


def check_after_kill(gallery: Gallery, acknowledged: dict[str, list[int]], in_flight: int) -> None:
    """Everything acknowledged is there; nothing is there by half; no more than was in flight is there besides."""
    for name, entries in acknowledged.items():
        assert gallery.identity_of(entries) == [name] * 2
    names = gallery.identities()
    assert gallery.count == 2 * len(names) and len(names) <= len(acknowledged) + in_flight
    everyone = np.arange(1, gallery.count + 1)
    first = gallery.get(everyone[:2])
    assert gallery.search(first[:1], gallery.count)[0].shape == (1, gallery.count)
    np.testing.assert_allclose(gallery.get(everyone[::2]), np.broadcast_to(first[0], (len(names), *first[0].shape)))
