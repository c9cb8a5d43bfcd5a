"""One real server for the whole folder; a test that kills servers starts its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import ServerError
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation, find_server
from gaitsdk_export.triton.repository import render
from gaitsdk_export.triton.server import TritonServer

PEOPLE = 30
THRESHOLD = 0.028  # in the middle of what random weights give


def pytest_configure() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores, several processes


@pytest.fixture(scope="session")
def installation() -> Installation:
    try:
        return find_server()
    except ServerError as error:
        pytest.skip(f"needs a real tritonserver: {error}")


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with random weights; its re-ranker's output is random too, so that re-ranking changes the order."""
    torch = pytest.importorskip("torch")
    from gaitsdk.bundle import Bundle
    from gaitsdk.models import create
    from gaitsdk.models.cargait import CarGait

    torch.manual_seed(7)
    backbone = create("gaitbase", channels=(8, 8, 16, 16), stem_stride=2, strides=(1, 2, 1, 1), dims=32, strips=16)
    reranker = CarGait(dims=32, width=32, heads=4)
    with torch.no_grad():
        for name, value in reranker.named_parameters():
            if name.startswith("output"):
                value.normal_(std=0.5)
    path = tmp_path_factory.mktemp("bundle") / "tiny.gait"
    bundle = Bundle.create(path, backbone=backbone, reranker=reranker, k=10)
    common = {"reranker": "cargait", "k": 10, "fpir": 0.1}
    bundle.annotate(
        calibration=[
            {"task": "identify", "gallery_size": 2 * PEOPLE, "threshold": THRESHOLD, **common},
            {"task": "verify", "gallery_size": 1, "threshold": 2 * THRESHOLD, **common},
        ]
    )
    return path


@pytest.fixture(scope="session")
def repository(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(bundle_path, tmp_path_factory.mktemp("repository") / "models")


@pytest.fixture(scope="session")
def settings(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of the session's server, whose gallery holds `PEOPLE` synthetic people."""
    gallery = tmp_path_factory.mktemp("gallery") / "people.db"
    found = Settings(bundle=str(bundle_path), gallery=str(gallery), runtime="torch", device="cpu", threads=1)
    prepare_gallery(found)
    with Recognizer.load(bundle_path, runtime="torch", device="cpu", gallery=gallery, threads=1) as recognizer:
        for identity in range(PEOPLE):
            recognizer.enroll(f"person-{identity}", [walk(identity, "nm-01"), walk(identity, "nm-02")])
    return found


@pytest.fixture(scope="session")
def server(installation: Installation, repository: Path, settings: Settings) -> Iterator[TritonServer]:
    with TritonServer(repository, settings, installation=installation) as running:
        yield running


@pytest.fixture(scope="session")
def remote(server: TritonServer) -> Iterator[Recognizer]:
    with Recognizer.connect(server.grpc_url, timeout=60) as recognizer:
        yield recognizer


@pytest.fixture(scope="session")
def over_http(server: TritonServer) -> Iterator[Recognizer]:
    with Recognizer.connect(server.http_url, timeout=60) as recognizer:
        yield recognizer


@pytest.fixture(scope="session")
def local(server: TritonServer, settings: Settings) -> Iterator[Recognizer]:
    """In this process, on the gallery file of the running server."""
    with Recognizer.load(
        settings.bundle, runtime="torch", device="cpu", gallery=settings.gallery, threads=1
    ) as recognizer:
        yield recognizer


_WALKS: dict[tuple[int, str, int], np.ndarray] = {}


def walk(identity: int, kind: str = "nm-01", frames: int = 12) -> np.ndarray:
    """`[frames, 64, 64]` uint8, normalised; kept, because drawing takes longer than recognising."""
    key = (identity, kind, frames)
    if key not in _WALKS:
        _WALKS[key] = synthetic.sequence(identity, type=kind, frames=frames)
    return _WALKS[key]
