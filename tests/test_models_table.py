"""The page on the backbones is what its script makes of the committed figures, and leaves no backbone out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "benchmarks" / "models_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_script_writes(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    pages = importlib.import_module("pages")
    assert page == pages.written(page, "models.md", script.START, script.tables(script.reports())), (
        "run python benchmarks/models_table.py"
    )


def test_every_registered_backbone_is_there(script: ModuleType) -> None:
    models = pytest.importorskip("gaitsdk.models")
    figures = script.reports()["CPU"]["networks"]
    prose, _, rest = script.PAGE.read_text(encoding="utf-8").partition(script.START)
    published = script.networks_table(script.reports()["CPU"])
    assert published in rest
    for name in models.list_models():
        assert f"| `{name}` |" in prose, f"no line on {name} in the list of architectures"
        assert f"| `{name}` " in published, f"no figures for {name}: python benchmarks/backbones.py --models {name}"
        known = {tag for each, entry in figures.items() if each.partition(".")[0] == name for tag in entry["tags"]}
        assert set(models.model_class(name).TAGS) <= known, f"tags of {name} without figures"


def test_unverified_networks_are_marked(script: ModuleType) -> None:
    models = pytest.importorskip("gaitsdk.models")
    for line in script.networks_table(script.reports()["CPU"]).splitlines()[2:]:
        name = re.match(r"\| `([^`]+)`", line)
        assert name is not None
        verified = models.model_class(name[1]).verified
        assert ("(unverified)" in line, "there are none" in line) == (not verified, not verified)


def test_a_page_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="markers"):
        importlib.import_module("pages").written("# The backbones", "models.md", script.START, "")


def test_parts_that_were_not_measured_are_dashes(script: ModuleType) -> None:
    network = {
        "parameters": 1234567, "gflops_30_frames": 2.5, "strips": 4, "dims": 8, "input": [3, 64, 44], "verified": True,
    }  # fmt: skip
    entry = {"tags": ["a", "b"], "machine": "here", "network": network}
    mixed = {"throughput_ratio": 1.234, "max_error_of_largest": 3e-7}
    small = {**entry, "tags": ["tiny"], "lengths": {"15 to 30": mixed}, "memory": {"1000": {"mebibytes": 3.4}}}
    tables = script.tables({"CPU": {"networks": {"net.a": entry, "net.tiny": small}}})
    dash = script.MISSING
    assert f"| `net` a, b | 1.23 M | 4 x 8 | 3 x 64 x 44 | 2.5 | {dash} | {dash} | {dash} | academic" in tables
    assert "| `net` tiny | 1.23 | 3e-07 | 3 MiB / 1,000 |" in tables
    assert tables.endswith("Measured on: here.")


def test_figures_in_the_results_are_plain_and_hold_no_reference(script: ModuleType) -> None:
    """The reference's own milliseconds stay out: only ratios to them are ours to publish."""
    for report in script.reports().values():
        for entry in report["networks"].values():
            speed = entry.get("speed", {})
            assert speed.keys() <= {"eager_ms", "eager_ms_min", "machine_factor", "against_reference"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the benchmark reads /proc")
def test_the_benchmark_names_its_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("backbones", ROOT / "benchmarks" / "backbones.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "backbones", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert set(module.chosen("gaitset.grew")) == {"gaitset.oumvlp"}
    assert {"deepgaitv2.2d", "deepgaitv2.3d", "deepgaitv2.gait3d"} <= set(module.configurations("deepgaitv2"))
    with pytest.raises(SystemExit, match=r"gaitset\.casiab"):
        module.chosen("gaitset.casia")
