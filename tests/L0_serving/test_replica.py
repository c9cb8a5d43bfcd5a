"""Galleries on several machines, and the proxy of deploy/ in front of their servers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gaitsdk import Gallery, Recognizer, synthetic
from gaitsdk.errors import AccessDeniedError, GalleryBehindError, GalleryError, ModelMismatchError
from gaitsdk_export.triton import replica
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.server import TritonServer

RANDOM = np.random.default_rng(11)
WALK = synthetic.sequence(3, type="nm-03", frames=12)


def opened(path: Path, fingerprint: str = "f" * 64) -> Gallery:
    return Gallery.open(path, fingerprint=fingerprint, strips=2, dims=4, metric="euclidean")


def features() -> np.ndarray:
    return RANDOM.normal(size=(2, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path / "writer.db") as writer:
        for person in range(20):
            writer.add(f"person-{person}", features())
    return tmp_path


def test_a_reader_follows_while_it_searches(folder: Path) -> None:
    live, shared, copy = folder / "writer.db", folder / "shared.db", folder / "reader.db"
    probe = features()
    assert replica.publish(live, shared) and replica.follow(shared, copy)
    assert not replica.publish(live, shared) and not replica.follow(shared, copy), "nothing new"
    errors: list[Exception] = []
    done = threading.Event()

    def search(gallery: Gallery) -> None:
        while not done.is_set():
            try:
                assert len(gallery.search(probe[None], 5)[0][0]) == 5
            except Exception as error:  # noqa: BLE001 - whatever it is, the test tells
                errors.append(error)

    with opened(live) as writer, opened(copy) as reader:
        thread = threading.Thread(target=search, args=(reader,))
        thread.start()
        for person in range(15):
            writer.add(f"new-{person}", probe + 0.01 * person)
            writer.delete(identity=f"person-{person}")
            assert replica.publish(live, shared) and replica.follow(shared, copy)
            assert reader.sequence == writer.sequence and reader.identities() == writer.identities()
            assert np.array_equal(reader.search(probe[None], 10)[0], writer.search(probe[None], 10)[0])
        done.set()
        thread.join()
    assert not errors
    left = {each.name for each in folder.iterdir()}
    assert {"shared.db"} == {name for name in left if "shared" in name}, "one file, no draft"


def test_what_does_not_belong_together(folder: Path) -> None:
    live, shared = folder / "writer.db", folder / "shared.db"
    replica.publish(live, shared)
    with opened(folder / "other.db", "e" * 64) as other:
        other.add("somebody", features())
    for action, source, target in ((replica.publish, live, "other.db"), (replica.follow, shared, "other.db")):
        with pytest.raises(ModelMismatchError, match="another model"):
            action(source, folder / target)
    (folder / "old.db").write_bytes(live.read_bytes())
    with opened(live) as writer:
        writer.add("late", features())
    replica.publish(live, shared)
    with pytest.raises(GalleryError, match="restored from a backup"):
        replica.publish(folder / "old.db", shared)


def test_files_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.db").write_text("no gallery at all")
    for source in ("none.db", "text.db"):
        assert replica.main(["follow", str(folder / source), str(folder / "copy.db")]) == 1
        assert source in capsys.readouterr().err
    assert replica.main(["publish", str(folder / "writer.db"), str(folder / "none" / "copy.db")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert replica.main(["publish", str(folder / "writer.db"), str(folder / "copy.db")]) == 0
    assert "copy.db" in capsys.readouterr().out and not (folder / "none").exists()


def load_deploy_files() -> ModuleType:
    path = Path(__file__).parents[1] / "test_deploy_files.py"
    spec = importlib.util.spec_from_file_location("deploy_files_of_the_proxy", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reader(
    server: TritonServer,
    settings: Settings,
    installation: Installation,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TritonServer]:
    """Another server, whose gallery follows that of the session's."""
    folder = tmp_path_factory.mktemp("reader")
    replica.publish(Path(str(settings.gallery)), folder / "shared.db")
    replica.follow(folder / "shared.db", folder / "people.db")
    own = replace(settings, gallery=str(folder / "people.db"), audit=str(folder / "audit.jsonl"))
    with TritonServer(repository, own, installation=installation) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(
    server: TritonServer, reader: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """`127.0.0.1:port` of nginx with the configuration of deploy/, and its certificate."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    folder = tmp_path_factory.mktemp("proxy")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changes = {
        "gaitsdk-writer:8000": f"127.0.0.1:{server.http_port}",
        "gaitsdk-writer:8001": f"127.0.0.1:{server.grpc_port}",
        "gaitsdk-readers:8000": f"127.0.0.1:{reader.http_port}",
        "listen 8443": f"listen 127.0.0.1:{port}",
    }
    configuration = load_deploy_files().local_proxy(folder, changes)
    (folder / "tokens" / "people.map").write_text('"Bearer s3cret" "alice";\n')
    command = ["nginx", "-c", str(configuration), "-g", "daemon off; user root;"]
    process = subprocess.Popen(command)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", folder / "tls" / "tls.crt"
    finally:
        process.terminate()
        process.wait(10)


def test_enrolled_at_the_writer_and_found_at_the_reader(
    proxy: tuple[str, Path], server: TritonServer, reader: TritonServer
) -> None:
    options = {"ca": proxy[1], "token": "s3cret", "timeout": 60}
    probe = synthetic.sequence(77, type="bg-01", frames=12)
    gallery = Path(str(reader.settings.gallery))
    with (
        Recognizer.connect(f"grpcs://{proxy[0]}", **options) as writing,
        Recognizer.connect(f"https://{proxy[0]}", headers={"triton_actor": "mallory"}, **options) as reading,
    ):
        before = reading.count
        writing.enroll("newcomer", probe)
        try:
            assert reading.count == before + 1 and "newcomer" in reading.identities(), "the writer's answer"
            assert reading.identify(probe).identity != "newcomer", "the reader's answer"
            assert writing.identify(probe).identity == "newcomer"
            reading.enroll("newcomer", probe)
            with pytest.raises(GalleryBehindError):  # who enrolled is not told what was before
                reading.identify(probe)
            replica.publish(Path(str(server.settings.gallery)), gallery.with_name("shared.db"))
            assert replica.follow(gallery.with_name("shared.db"), gallery)
            assert reading.identify(probe).to_dict()["candidates"] == writing.identify(probe).to_dict()["candidates"]
        finally:
            reading.delete("newcomer")
        assert writing.count == before
    audit = Path(str(reader.settings.audit)).read_text()
    lines = [json.loads(line) for line in audit.splitlines()]
    asked = [line for line in lines if line["event"] == "identify" and "canary" not in line]
    assert asked and all(line["actor"] == "alice" for line in asked), "not who the client says it is"
    assert "s3cret" not in audit + reader.log_path.read_text()


@pytest.mark.parametrize("protocol", ["grpcs", "https"])
@pytest.mark.parametrize("token", [None, "wrong"])
def test_nobody_else_gets_in(proxy: tuple[str, Path], protocol: str, token: str | None) -> None:
    with pytest.raises(AccessDeniedError):
        Recognizer.connect(f"{protocol}://{proxy[0]}", ca=proxy[1], token=token)


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("v2/repository/index", 2, 404),
        ("v2/models/embed/config", 2, 404),
        ("v2/models/gallery/versions/1/infer", 2, 404),
        ("metrics", 2, 404),
        ("v2/models/identify/infer", 64 * 2**20 + 1, 413),
    ],
)
def test_what_the_proxy_refuses(proxy: tuple[str, Path], path: str, length: int, status: int) -> None:
    request = urllib.request.Request(f"https://{proxy[0]}/{path}", data=b"{}", method="POST")
    request.add_header("authorization", "Bearer s3cret")
    request.add_header("content-length", str(length))
    trust = ssl.create_default_context(cafile=proxy[1])
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20, context=trust)
    assert refused.value.code == status


def test_what_scales_the_readers_is_measured(reader: TritonServer) -> None:
    rule = (Path(__file__).parents[2] / "deploy/kubernetes/monitoring/prometheus-adapter.yaml").read_text()
    with Recognizer.connect(reader.http_url, timeout=60) as recognizer:
        recognizer.identify(WALK)
    url = f"http://127.0.0.1:{reader.metrics_port}/metrics"
    metrics = urllib.request.urlopen(url, timeout=10).read().decode()
    for name in ("nv_inference_queue_duration_us", "nv_inference_request_success"):
        assert name in rule
        assert any(line.startswith(f'{name}{{model="identify"') for line in metrics.splitlines())
