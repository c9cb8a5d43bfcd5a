"""`gaitsdk benchmark` and what `gaitsdk doctor` finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gaitsdk.benchmark_cli import BATCHES, benchmark, interleaved, measure
from gaitsdk.bundle import Bundle
from gaitsdk.doctor import examine


def test_calls_take_turns_forwards_and_backwards() -> None:
    seen: list[str] = []
    ways = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    found = interleaved(ways, seconds=0.0, least=3)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(each) for name, each in found.items()} == {"a": 3, "b": 3}
    assert len(interleaved(ways, seconds=60.0, least=1, most=2)["a"]) == 2


def test_rows_are_compared_with_the_first_way(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": [4.0, 8.0, 6.0], "fast": [1.0, 2.0, 3.0]}
    monkeypatch.setattr("gaitsdk.benchmark_cli.interleaved", lambda _calls, _seconds: times)
    slow, fast = measure("a task", {"slow": print, "fast": print}, (), 1.0)
    assert (slow.milliseconds, slow.best, slow.times_as_fast, slow.calls) == (6000.0, 4000.0, None, 3)
    assert (fast.milliseconds, fast.times_as_fast) == (2000.0, 4.0)  # the median of 4, 4 and 2


def test_the_verb_times_both_networks_of_a_bundle(tiny_bundle: Path) -> None:
    app = typer.Typer()
    app.command()(benchmark)
    done = CliRunner().invoke(app, ["--bundle", str(tiny_bundle), "--device", "cpu", "--seconds", "0", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    ways: dict[str, list[str]] = {}
    for row in found["rows"]:
        ways.setdefault(row["what"], []).append(row["way"])
        assert 0 < row["best"] <= row["milliseconds"] <= row["p95"] and row["calls"] >= 5
    assert set(ways) == {*(f"embed, batch {batch}" for batch in BATCHES), "re-rank, K 10"}
    eager = ["PyTorch, eager", "runtime onnx on cpu", "runtime torchscript on cpu", "runtime torch on cpu"]
    assert ways["embed, batch 1"][:4] == eager
    assert ways["re-rank, K 10"] == ["PyTorch, one pair at a time", *eager]
    assert found["machine"]["cores"] >= 1 and found["bundle"]["strips"] == 16


def test_doctor_says_whether_artefacts_fit(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny.gait")
    bundle = Bundle.load(tmp_path / "tiny.gait")
    made = bundle.artefact("backbone", "onnx")
    assert made is not None
    record: dict[str, Any] = json.loads(made.with_name(f"{made.name}.export.json").read_text())
    other = tmp_path / "other.onnx"
    shutil.copyfile(made, other)
    bundle.add_artefact("backbone", "onnx", other, {**record, "source_sha256": "0" * 64})
    found = examine(bundle.path)
    assert found["artefact backbone.torchscript"] == "fp32, verdict OK; fits any machine"
    assert found["artefact backbone.onnx"].startswith("no: ") and "stale" in found["artefact backbone.onnx"]
    assert found["runtime onnx"].startswith("no: ") and found["runtime torch"].startswith("yes, on ")
    assert "gaitsdk export" in found["runtime tensorrt"]
    for name in ("tensorrt", "tensorrt-rtx", "GPU", "CPU", "providers of ONNX Runtime", "tritonserver"):
        assert found[name]
    assert "CPUExecutionProvider" in found["providers of ONNX Runtime"]


def test_doctor_of_a_bundle_that_is_none(tmp_path: Path) -> None:
    found = examine(tmp_path / "none.gait")
    assert found[str(tmp_path / "none.gait")].startswith("unusable: ") and "tritonserver" in found
