"""Servers that are not there, die in the middle, or lose their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import (
    BundleError,
    DeadlineExceededError,
    EmptyGalleryError,
    GaitError,
    OptionError,
    ServerError,
    ServerUnavailableError,
)
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton import leftovers
from gaitsdk_export.triton import server as server_module
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.server import TritonServer
from gaitsdk_export.triton.server import _members as members

WALK = synthetic.sequence(2, type="nm-03", frames=12)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "grpc://", "http://"])
def test_nobody_there(scheme: str) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="gaitsdk serve"):
        Recognizer.connect(f"{scheme}127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("scheme", ["grpc://", "http://"])
def test_a_port_that_never_answers(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError):
            Recognizer.connect(f"{scheme}127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url", ["", "localhost", "ftp://localhost:1", "grpc://localhost:port", "http://h:1/x", 7, None]
)
def test_unusable_addresses(url: object) -> None:
    with pytest.raises(OptionError, match="grpc://host:8001"):
        Recognizer.connect(url)  # type: ignore[arg-type]


def test_a_deadline_is_kept(server: TritonServer) -> None:
    with Recognizer.connect(server.grpc_url) as recognizer:
        recognizer._engine._timeout = 0.02  # type: ignore[attr-defined] # shorter than any answer takes
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            recognizer.embed([np.roll(np.resize(WALK, (900, 64, 64)), i, axis=0) for i in range(8)])
        assert time.monotonic() - started < 2


def test_empty_then_killed_in_the_middle_and_back(
    installation: Installation, repository: Path, settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, gallery=str(tmp_path / "people.db"))
    prepare_gallery(settings)
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    long = [np.roll(np.resize(WALK, (1000, 64, 64)), i, axis=0) for i in range(8)]
    caught: dict[str, tuple[BaseException, float]] = {}
    with TritonServer(repository, settings, installation=installation, **ports) as first:
        clients = {url: Recognizer.connect(url, timeout=30) for url in (first.grpc_url, first.http_url)}
        recognizer = clients[first.grpc_url]
        with pytest.raises(EmptyGalleryError, match="nobody is enrolled"):
            recognizer.identify(WALK)
        assert recognizer.count == 0 and recognizer.identities() == []
        for identity in range(3):
            recognizer.enroll(f"person-{identity}", synthetic.sequence(identity, frames=12))
        expected = [each.identify(WALK).to_dict()["candidates"] for each in clients.values()]

        def ask(url: str) -> None:
            try:
                while True:
                    clients[url].embed(long)
            except GaitError as error:
                caught[url] = error, time.monotonic()

        threads = [threading.Thread(target=ask, args=(url,)) for url in clients]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        killed = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(10)
        for url, recognizer in clients.items():
            error, when = caught[url]
            assert isinstance(error, ServerUnavailableError), error
            assert when - killed < 5
            with pytest.raises(ServerUnavailableError):
                recognizer.identify(WALK)
    with TritonServer(repository, settings, installation=installation, **ports) as second:
        answers = [answer_within(recognizer, 10) for recognizer in clients.values()]
        assert answers == expected, "what was acknowledged before kill -9 is there after it"
        os.kill(next(each for each in members(second.pid) if each != second.pid), signal.SIGKILL)
        with pytest.raises(ServerError, match="process of a model died"):
            second.wait()
        os.kill(second.pid, signal.SIGKILL)  # a server with a dead model takes long to stop by itself
        for recognizer in clients.values():
            with pytest.raises(GaitError):
                recognizer.enroll("person", WALK)
            recognizer.close()


def answer_within(recognizer: Recognizer, seconds: float) -> object:
    """What the client answers once it has found its server again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return recognizer.identify(WALK).to_dict()["candidates"]
        except ServerUnavailableError:
            assert time.monotonic() < deadline, "the client did not recover"
            time.sleep(0.1)


def serving(settings: Settings, log: Path) -> tuple[subprocess.Popen[str], int]:
    """`gaitsdk serve` as a process of its own, and the server's process group."""
    code = (
        "import sys; from gaitsdk_export.serving_cli import serve; from pathlib import Path; "
        "from gaitsdk.errors import GaitError\n"
        "try:\n"
        f"  serve(Path({settings.bundle!r}), Path({settings.gallery!r}), http_port=0, grpc_port=0, metrics_port=0, "
        f"runtime='torch', device='cpu', threads=1, log=Path({str(log)!r}))\n"
        "except GaitError as error: sys.exit(str(error))"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), TMPDIR=str(log.parent))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "serving at grpc://127.0.0.1:" in line, line + process.stderr.read()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    group = next(int(child) for child in children if len(members(int(child))) > 4)
    return process, group


def test_serve_stops_cleanly(settings: Settings, installation: Installation, tmp_path: Path) -> None:
    process, group = serving(settings, tmp_path / "log")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert time.monotonic() - started < 10
    assert not members(group), "the server or a stub is left"
    assert process.stderr is not None and process.stderr.read() == "stopped\n"
    assert not list(tmp_path.glob("gaitsdk-*"))


def test_a_killed_server_is_reported_as_killed(settings: Settings, installation: Installation, tmp_path: Path) -> None:
    process, group = serving(settings, tmp_path / "log")
    os.kill(group, signal.SIGKILL)
    assert process.wait(15) == 1
    assert process.stderr is not None
    assert "tritonserver was killed by signal 9" in process.stderr.read()
    assert not members(group)


def test_no_orphan_when_the_parent_is_killed(settings: Settings, installation: Installation, tmp_path: Path) -> None:
    process, group = serving(settings, tmp_path / "log")
    assert len(members(group)) >= 5  # the server and a stub per model
    process.kill()
    process.wait()
    deadline = time.monotonic() + 12
    while members(group):
        assert time.monotonic() < deadline, f"still there: {members(group)}"
        time.sleep(0.2)
    left = {each.name for each in tmp_path.glob("gaitsdk-*")}
    assert {name.split("-")[1] for name in left} == {"models", "triton"}
    again, _ = serving(settings, tmp_path / "log")
    there = {each.name for each in tmp_path.glob("gaitsdk-*")}
    assert len(there) == 2 and not there & left, "the next start removes what the killed one left"
    again.send_signal(signal.SIGTERM)
    assert again.wait(15) == 0


def test_only_what_the_dead_left_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"gaitsdk-models-{ended.pid}-a", f"gaitsdk-triton-{os.getpid()}-b", "gaitsdk-models-mine", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / f"gaitsdk-shm-{ended.pid}-x").write_text("")
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    leftovers.remove_leftovers()
    kept = {f"gaitsdk-triton-{os.getpid()}-b", "gaitsdk-models-mine", "other"}
    assert {each.name for each in tmp_path.iterdir()} == kept


def test_it_listens_on_the_loopback_interface_only(server: TritonServer) -> None:
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A":
                listening.add((address.split(":")[0], int(address.split(":")[1], 16)))
    for port in (server.http_port, server.grpc_port, server.metrics_port):
        assert {address for address, found in listening if found == port} <= {
            "0100007F",
            "0000000000000000FFFF00000100007F",
        }


def test_a_search_leaves_half_of_the_cores_to_networks(server: TritonServer) -> None:
    (searcher,) = [p for p in members(server.pid) if b"/shortlist/1/" in Path(f"/proc/{p}/cmdline").read_bytes()]
    chosen = dict(each.partition(b"=")[::2] for each in Path(f"/proc/{searcher}/environ").read_bytes().split(b"\0"))
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert chosen[b"OPENBLAS_NUM_THREADS"].decode() == threads
    assert chosen[b"OPENBLAS_THREAD_TIMEOUT"] == b"4"


def test_no_bytecode_appears_in_the_repository(server: TritonServer, repository: Path) -> None:
    assert not [path for path in repository.rglob("*") if path.name == "__pycache__" or path.suffix == ".pyc"]


def test_a_stray_folder_is_refused_before_the_start(
    installation: Installation, repository: Path, settings: Settings, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(repository, tmp_path / "models")
    (tmp_path / "models" / "__pycache__").mkdir()
    with pytest.raises(ServerError, match="__pycache__"):
        TritonServer(tmp_path / "models", settings, installation=installation).start()


def test_a_failed_start_says_why(
    installation: Installation, repository: Path, settings: Settings, tmp_path: Path
) -> None:
    broken = replace(settings, bundle=str(tmp_path / "none.gait"))
    with pytest.raises(ServerError, match=BundleError.__name__):
        TritonServer(repository, broken, installation=installation).start()


def test_a_taken_port_is_named(settings: Settings, repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerError, match=str(taken.getsockname()[1])):
            TritonServer(repository, settings, http_port=taken.getsockname()[1])


def test_numpy_2_is_refused_with_an_old_server(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.3.0")
    with pytest.raises(GaitError, match="NumPy 2"):
        server_module.check_version(server.version, production=False)
