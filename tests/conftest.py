"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    # A runner in the background of a shell ignores Ctrl-C, and so would the programs whose Ctrl-C is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` (reference numbers and test data; not part of the product) in or beside the repository, or in
    one of the folders around it; the variable GAITSDK_SHARED names another. Skips where there is none."""
    chosen = os.environ.get("GAITSDK_SHARED")
    root = Path(__file__).resolve().parents[1]
    candidates = [Path(chosen)] if chosen else [folder / "shared" for folder in (root, *root.parents)]
    for candidate in candidates:
        if (candidate / "parity").is_dir():
            return candidate
    pytest.skip(f"needs the reference data: no {' or '.join(map(str, candidates))} with a folder parity in it")


@pytest.fixture(scope="session")
def parity_dir(shared_dir: Path) -> Path:
    """Reference numbers: <name>.json and <name>.npz; its README.md says how they were made."""
    return shared_dir / "parity"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with random weights and all artefacts, tiny.gait; its re-ranker's output is random too, so that
    re-ranking changes the order. Shared by all tests: copy it before changing anything in it."""
    torch = pytest.importorskip("torch")
    from gaitsdk import models
    from gaitsdk.bundle import Bundle
    from gaitsdk.models.cargait import CarGait
    from gaitsdk_export.bundles import export_bundle

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    backbone = models.create(
        "gaitbase", channels=(8, 8, 16, 16), stem_stride=2, strides=(1, 2, 1, 1), dims=32, strips=16
    )
    reranker = CarGait(dims=32)
    torch.nn.init.normal_(reranker.output.weight, std=0.05)
    torch.random.set_rng_state(state)
    path = tmp_path_factory.mktemp("bundle") / "tiny.gait"
    Bundle.create(path, backbone=backbone.eval(), reranker=reranker.eval(), k=10, licence="Apache-2.0")
    for result in export_bundle(path):
        result.raise_for_verdict()
    return path
