"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
