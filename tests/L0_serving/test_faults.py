"""A server that fails in part or altogether: what callers see, and what is true afterwards. (docs/serving_load.md)"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.errors import (
    DeadlineExceededError,
    GaitError,
    GalleryError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer
from gaitsdk_export.triton.server import _members as members

pytest.importorskip("grpc")
pytestmark = pytest.mark.serving  # a server each: minutes

if TYPE_CHECKING:
    from client_fakes import Proxy
else:
    spec = importlib.util.spec_from_file_location("client_fakes", Path(__file__).with_name("client_fakes.py"))
    fakes = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    Proxy = fakes.Proxy

WALK = synthetic.sequence(2, type="nm-03", frames=12)
Serve = Callable[..., TritonServer]


@pytest.fixture(scope="module")
def gallery(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the people of the session's, for tests that spoil theirs."""
    file = tmp_path_factory.mktemp("faults") / "people.db"
    with Recognizer.load(settings.bundle, runtime="torch", device="cpu", gallery=file, threads=1) as recognizer:
        for identity in range(3):
            recognizer.enroll(f"person-{identity}", synthetic.sequence(identity, frames=12))
    return file


@pytest.fixture
def serve(
    installation: Installation, repository: Path, settings: Settings, gallery: Path, tmp_path: Path
) -> Iterator[Serve]:
    """Starts servers on copies of the gallery; all end with the test."""
    servers: list[TritonServer] = []

    def start(models: Path = repository, **options: int) -> TritonServer:
        copy = tmp_path / "people.db"
        if not copy.exists():
            shutil.copy(gallery, copy)
        chosen = replace(settings, gallery=str(copy))
        servers.append(TritonServer(models, chosen, installation=installation, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


def stubs(server: TritonServer, model: str) -> list[int]:
    """The processes that run a Python model."""
    every = {each: Path(f"/proc/{each}/cmdline").read_text() for each in members(server.pid)}
    found = [each for each, command in every.items() if f"/{model}/1/model.py" in command]
    assert len(found) == (Options.instances if model in ("embed", "rerank") else 1)
    return found


def ranking(recognizer: Recognizer, walk: np.ndarray = WALK) -> list[tuple[int, str, float]]:
    found = recognizer.identify(walk, threshold=1).candidates
    return [(each.entry_id, each.identity, round(each.distance, 4)) for each in found]


def test_a_dead_model_is_named_and_the_others_go_on(serve: Serve) -> None:
    server = serve()
    with Recognizer.connect(server.grpc_url, timeout=30) as recognizer:
        right, entries = ranking(recognizer), recognizer.count
        features = recognizer.embed(WALK)
        (writer,) = stubs(server, "gallery")
        os.kill(writer, signal.SIGKILL)
        with pytest.raises(ServerUnavailableError) as caught:
            recognizer.enroll("dora", WALK)
        assert caught.value.outcome_unknown, "it may have died after the commit"
        assert ranking(recognizer) == right, "identifying needs no model that enrols"
        first, second = stubs(server, "rerank")
        os.kill(first, signal.SIGKILL)
        lists, distances = np.stack([features] * 2)[None], np.zeros((1, 2))
        for _ in range(4):  # the other copy answers, or the dead one is named
            with contextlib.suppress(ServerUnavailableError):
                np.testing.assert_allclose(recognizer.rerank(features[None], lists), distances, atol=1e-4)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(ServerUnavailableError, match="a model of the server died"):
            recognizer.rerank(features[None], lists)
        assert ranking(recognizer) == right, "identifying does not pass through it"
        assert recognizer.search(features, 3)[0].shape == (1, min(3, entries))
        (searcher,) = stubs(server, "shortlist")
        os.kill(searcher, signal.SIGKILL)
        with pytest.raises(ServerUnavailableError, match="a model of the server died"):
            recognizer.identify(WALK, threshold=1)
        np.testing.assert_array_equal(recognizer.embed(WALK), features)
    with pytest.raises(ServerError, match="process of a model died"):
        server.wait()
    os.kill(server.pid, signal.SIGKILL)  # it takes long to stop by itself with a dead model


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_stopped_server_costs_the_deadline_and_no_more(serve: Serve, scheme: str) -> None:
    server = serve()
    with Recognizer.connect(getattr(server, f"{scheme}_url"), timeout=30) as recognizer:
        right = ranking(recognizer)
        os.killpg(server.pid, signal.SIGSTOP)
        recognizer._engine._timeout = 1.0  # type: ignore[attr-defined]
        try:
            for call in (lambda: ranking(recognizer), lambda: recognizer.enroll("dora", WALK)):
                started = time.monotonic()
                with pytest.raises(DeadlineExceededError) as caught:
                    call()
                assert 0.9 < time.monotonic() - started < 5
            assert caught.value.outcome_unknown
        finally:
            os.killpg(server.pid, signal.SIGCONT)
        recognizer._engine._timeout = 30.0  # type: ignore[attr-defined]
        deadline = time.monotonic() + 30
        while "dora" not in recognizer.identities() and time.monotonic() < deadline:
            time.sleep(0.1)
        # What was asked before the stop may be done after it: that is why the outcome was unknown.
        assert recognizer.count in (3, 4)
        if recognizer.count == 3:
            assert ranking(recognizer) == right


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_connection_that_is_reset(serve: Serve, scheme: str) -> None:
    server = serve()
    proxy = Proxy(getattr(server, f"{scheme}_port"))
    long = np.resize(WALK, (1500, 64, 64))
    with Recognizer.connect(f"{scheme}://127.0.0.1:{proxy.port}", timeout=30, retries=0) as recognizer:
        right = ranking(recognizer)
        over = threading.Event()

        def reset_now_and_then() -> None:  # once may be between two requests, which harms neither
            while not over.wait(0.3):
                proxy.reset()

        threading.Thread(target=reset_now_and_then).start()
        try:
            with pytest.raises(ServerUnavailableError) as caught:
                for _ in range(100):
                    recognizer.embed(long)
        finally:
            over.set()
        assert caught.value.retryable
        deadline = time.monotonic() + 10
        while True:
            try:
                assert ranking(recognizer) == right
                break
            except ServerUnavailableError:
                assert time.monotonic() < deadline, "the client does not connect again"
                time.sleep(0.1)
    assert proxy.opened > 1


def test_a_full_queue_refuses_some_and_answers_the_others_rightly(
    serve: Serve, settings: Settings, tmp_path: Path
) -> None:
    server = serve(render(settings.bundle, tmp_path / "models", Options(max_batch=1, max_queue=2)))
    with (
        Recognizer.connect(server.grpc_url, timeout=60, retries=0) as once,
        Recognizer.connect(server.grpc_url, timeout=60, retries=10) as patient,
    ):
        right = ranking(patient)

        def ask(recognizer: Recognizer) -> list[tuple[int, str, float]] | GaitError:
            try:
                return ranking(recognizer)
            except GaitError as error:
                return error

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, [once] * 96))
        refused = [each for each in answers if isinstance(each, GaitError)]
        assert {type(each) for each in refused} == {QueueFullError} and all(each.retryable for each in refused)
        answered = [each for each in answers if not isinstance(each, GaitError)]
        assert answered and all(each == right for each in answered)
        assert ranking(patient) == right, "the queue is empty again"

        # An enrolment asks for features in the same queue, and is told the same.
        over, entries = threading.Event(), once.count
        with ThreadPoolExecutor(12) as pool:
            crowd = [pool.submit(lambda: [ask(once) for _ in iter(over.is_set, True)]) for _ in range(12)]
            try:
                with pytest.raises(QueueFullError) as caught:
                    for i in range(100):
                        once.enroll(f"late-{i}", WALK)
            finally:
                over.set()
            assert caught.value.retryable and all(each.result() for each in crowd)
        assert patient.count == entries + i


def test_a_full_disk_enrols_nothing_and_stops_nobody(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (writer,) = stubs(server, "gallery")
    with Recognizer.connect(server.grpc_url, timeout=30) as recognizer:
        right, names = ranking(recognizer), recognizer.identities()
        # Files may not grow beyond what they are: what a full disk does, for the one process that writes.
        largest = max(each.stat().st_size for each in tmp_path.glob("people.db*"))
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        try:
            with pytest.raises(GalleryError, match="nothing of this call was stored") as caught:
                for number in range(300):
                    recognizer.enroll(f"new-{number}", [WALK] * 8)
            assert type(caught.value) is GalleryError
            stored = [f"new-{each}" for each in range(number)]
            assert sorted([*names, *stored]) == recognizer.identities(), "what was acknowledged, and nothing else"
        finally:
            resource.prlimit(writer, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert recognizer.identify(WALK, threshold=1).candidates
        recognizer.enroll("there is room again", WALK)
        for name in [*stored, "there is room again"]:
            recognizer.delete(name)
        assert ranking(recognizer) == right


def test_a_replaced_gallery_takes_no_more_names(serve: Serve, gallery: Path, tmp_path: Path) -> None:
    server = serve()
    with Recognizer.connect(server.grpc_url, timeout=30) as recognizer:
        right = ranking(recognizer)
        other = shutil.copy(gallery, tmp_path / "other.db")
        with Recognizer.load(server.settings.bundle, runtime="torch", gallery=other, threads=1) as local:
            local.delete("person-1")
        os.replace(other, tmp_path / "people.db")
        # An enrolment would go into a file that has no name any more, and be gone with the server.
        for call in (lambda: recognizer.enroll("dora", WALK), lambda: recognizer.delete("person-2")):
            with pytest.raises(GalleryError, match=r"replaced or removed.*start the server again"):
                call()
        assert ranking(recognizer) == right, "searches go on in what was opened"


def test_a_hot_swap_changes_nothing_until_the_restart(serve: Serve, settings: Settings, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gaitsdk.models import create

    models = render(settings.bundle, tmp_path / "models")
    server = serve(models)
    ports = {"http_port": server.http_port, "grpc_port": server.grpc_port}
    torch.manual_seed(8)
    backbone = create("gaitbase", channels=(8, 8, 16, 16), stem_stride=2, strides=(1, 2, 1, 1), dims=32, strips=16)
    new = Bundle.create(tmp_path / "new.gait", backbone=backbone)
    with Recognizer.connect(server.grpc_url, timeout=30) as recognizer:
        right = ranking(recognizer)
        render(new.path, models, Options(reranker="none"))
        assert ranking(recognizer) == right and recognizer.identify(WALK, threshold=1).fingerprint != new.fingerprint
        server.stop()
        fresh = replace(settings, bundle=str(new.path), gallery=str(tmp_path / "new.db"))
        prepare_gallery(fresh)
        with Recognizer.load(new.path, runtime="torch", gallery=tmp_path / "new.db", reranker="none") as local:
            local.enroll("eve", WALK)
        with TritonServer(models, fresh, installation=server._installation, **ports) as second:
            deadline = time.monotonic() + 20
            while True:
                try:
                    with pytest.raises(ServerError, match="another model than when this client connected"):
                        recognizer.identify(WALK, k=1, threshold=1)
                    break
                except ServerUnavailableError:
                    assert time.monotonic() < deadline
            with Recognizer.connect(second.grpc_url, timeout=30) as again:
                assert again.identify(WALK, threshold=1).fingerprint == new.fingerprint
