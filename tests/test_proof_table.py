"""The page on what was learned is what its script makes of the committed figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("proof_table")


def test_the_tables_are_what_the_script_writes(script: ModuleType) -> None:
    pages = importlib.import_module("pages")
    page = script.PAGE.read_text(encoding="utf-8")
    tables = script.tables(json.loads(script.RESULTS.read_text(encoding="utf-8")))
    assert page == pages.written(page, "proof.md", script.START, tables), "run python benchmarks/proof_table.py"


def test_gains_are_seed_by_seed_and_of_the_mean(script: ModuleType) -> None:
    def figures(value: float) -> dict[str, float]:
        return {key: value for key in script.COLUMNS}

    arms = {"a": {"0": figures(50.0), "1": figures(60.0)}, "b": {"0": figures(53.0), "1": figures(59.5)}}
    found = script.table(arms, "a")
    assert "| a | 55.0 ± 7.1 |" in found and "| +3.0, -0.5 | 2 |" in found
    single = script.table({"a": {"0": figures(50.0)}, "b": arms["b"]}, "a")
    assert "| a | 50.0 |" in single and "| +3.0, +9.5 | 2 |" in single
