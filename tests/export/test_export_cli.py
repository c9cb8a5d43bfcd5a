"""`gaitsdk export` with engines, half precision and verdicts: the matrix, the records, the exit codes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gaitsdk.bundle import Bundle
from gaitsdk.errors import ExportError
from gaitsdk_export import exporters, task
from gaitsdk_export.bundles import ExportResult, export_bundle
from gaitsdk_export.cases import embedder_cases
from gaitsdk_export.cli import export as export_command
from gaitsdk_export.cli import remarks
from gaitsdk_export.parity import Verdict

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

RUN = CliRunner()


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The verb; engines are cached in a folder of this test, and few walks are compared."""

    def few(size, channels=1, batches=(1, 3), lengths=(5, 9)):
        return embedder_cases(size, channels, batches, lengths)

    monkeypatch.setattr(exporters, "embedder_cases", few)
    monkeypatch.setenv("GAITSDK_ENGINE_CACHE", str(tmp_path / "engines"))
    monkeypatch.setenv("COLUMNS", "100")
    app = typer.Typer()
    app.command()(export_command)
    return lambda *arguments: RUN.invoke(app, [str(each) for each in arguments])


@pytest.fixture
def bundle_path(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "tiny.gait")
    return tmp_path / "tiny.gait"


def test_the_whole_matrix(rtx, command, bundle_path):
    sizes = ("--batch", "1:2:4", "--frames", "5:8:16", "--sm", "75,86,120")
    done = command(bundle_path, "--to", "onnx,torchscript,tensorrt,tensorrt-rtx", "--precision", "fp32,fp16", *sizes)
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert shown.count("exporting ") == 16
    for text in ("SM75 left out", "built for SM75, SM86, SM120, and not run", "TorchScript", "Building engine"):
        assert text in shown
    bundle = Bundle.load(bundle_path)  # every checksum holds
    made = {name for name in bundle.manifest.files if name.endswith(("onnx", "plan", "torchscript"))}
    ends = ("onnx", "fp16.onnx", "torchscript", "rtx.plan", "fp16.rtx.plan")
    assert made == {f"artefacts/{network}.{end}" for network in ("backbone", "reranker") for end in ends}
    record = json.loads((bundle_path / "artefacts/backbone.rtx.plan.export.json").read_text())
    assert record["engine"]["compute_capabilities"] == [86, 120] and record["engine"]["left_out"] == [75]
    assert record["engine"]["profiles"] == [{"batch": [1, 2, 4], "frames": [5, 8, 16]}]
    assert (record["max_batch_size"], record["verdict"], record["from_cache"]) == (4, "SKIPPED", False)
    assert record["reproduce"] == (
        "gaitsdk export tiny.gait --to tensorrt-rtx --batch 1:2:4 --frames 5:8:16 --sm 75,86,120"
    )
    record = json.loads((bundle_path / "artefacts/reranker.fp16.onnx.export.json").read_text())
    assert record["verdict"] == "OK" and record["parity"]["relative"] <= 0.02
    assert not [each for each in bundle_path.parent.iterdir() if each.name.startswith(".gaitsdk")]


@pytest.mark.timeout(600)  # two processes that import everything
def test_reproduce_makes_the_engine_again_in_a_process_of_its_own(rtx, command, bundle_path, tmp_path):
    """And takes it from the cache: the second process builds nothing."""
    sizes = ("--batch", "1:2:4", "--frames", "5:8:16", "--sm", "86", "--no-verify")
    assert command(bundle_path, "--to", "tensorrt-rtx-fp16", *sizes).exit_code == 0
    engine = bundle_path / "artefacts" / "backbone.fp16.rtx.plan"
    before = engine.read_bytes()
    engine.unlink()
    # The command of this environment, not of another one on PATH.
    tools = tmp_path / "bin"
    tools.mkdir()
    tool = tools / "gaitsdk"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gaitsdk.cli "$@"\n')
    tool.chmod(0o755)
    paths = [str(Path(__import__(name).__file__).parents[1]) for name in ("gaitsdk", "gaitsdk_export", rtx.__name__)]
    done = subprocess.run(
        [str(engine.with_name(f"{engine.name}.reproduce.sh"))],
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert engine.read_bytes() == before
    assert json.loads(engine.with_name(f"{engine.name}.export.json").read_text())["from_cache"] is True


def test_people_are_judged_and_a_lost_one_fails(command, bundle_path, monkeypatch):
    monkeypatch.setattr(task, "IDENTITIES", 12)
    monkeypatch.setattr(task, "FRAMES", 3)
    options = ("--to", "onnx", "--precision", "fp32,fp16", "--verdict", "task")
    done = command(bundle_path, *options)
    assert done.exit_code == 0, done.output
    assert " ".join(done.output.split()).count("over 12 synthetic people") == 4
    record = json.loads((bundle_path / "artefacts/backbone.fp16.onnx.export.json").read_text())
    assert record["people"]["identities"] == 12 and record["people"]["same_order"] >= 0.999
    before = (bundle_path / "manifest.json").read_bytes()
    monkeypatch.setattr(task, "_rank1", lambda distances, _labels, seen=[]: seen.append(0) or 100.0 - len(seen))
    done = command(bundle_path, *options)
    assert done.exit_code == 1
    assert "over synthetic people: Rank-1 98.0 % instead of 99.0 %" in " ".join(done.output.split())
    assert (bundle_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "tflite"), "onnx, torchscript, tensorrt, tensorrt-rtx"),
        (("--precision", "int4"), "fp32, fp16, bf16"),
        (("--batch", "8:1:64"), "LEAST:BEST:MOST"),
        (("--frames", "many"), "--frames"),
        (("--sm", "ninety"), "compute capability"),
    ],
)
def test_bad_usage_is_exit_code_2(command, bundle_path, arguments, text):
    before = (bundle_path / "manifest.json").read_bytes()
    done = command(bundle_path, *arguments)
    assert done.exit_code == 2
    assert text in " ".join(done.output.split())
    assert (bundle_path / "manifest.json").read_bytes() == before


def test_nothing_made_is_no_success(command, bundle_path):
    done = command(bundle_path, "--to", "torchscript", "--precision", "bf16")
    assert done.exit_code == 1
    assert "SKIPPED" in done.output


def test_a_folder_that_cannot_be_written_is_told(command, bundle_path, monkeypatch):
    def read_only(**_options):
        raise PermissionError(13, "Permission denied", "/a/folder")

    monkeypatch.setattr("gaitsdk_export.bundles.tempfile.TemporaryDirectory", read_only)
    done = command(bundle_path, "--to", "torchscript")
    assert done.exit_code == 1
    assert "/a/folder: the artefacts cannot be written; got Permission denied" in " ".join(done.output.split())


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_full_disk_changes_nothing(bundle_path, format):
    """A real limit on the size of files: the first large write fails half way."""
    before = sorted(each.name for each in bundle_path.rglob("*")), (bundle_path / "manifest.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, limits[1]))
    try:
        reasons = [each.reason for each in export_bundle(bundle_path, [format], verify=False) if each.path is None]
    except ExportError as error:
        reasons = [str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reasons and all("File too large" in each or "write" in each for each in reasons), reasons
    after = sorted(each.name for each in bundle_path.rglob("*")), (bundle_path / "manifest.json").read_bytes()
    assert after == before
    assert [each.name for each in bundle_path.parent.iterdir()] == ["tiny.gait"]
    Bundle.load(bundle_path)  # every checksum holds


def test_ctrl_c_leaves_nothing(bundle_path, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    before = sorted(each.name for each in bundle_path.rglob("*")), (bundle_path / "manifest.json").read_bytes()
    monkeypatch.setattr(exporters.Source, "_torchscript", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(bundle_path, ["torchscript"])
    after = sorted(each.name for each in bundle_path.rglob("*")), (bundle_path / "manifest.json").read_bytes()
    assert after == before
    assert [each.name for each in bundle_path.parent.iterdir()] == ["tiny.gait"]


def test_one_reason_for_several_is_told_once():
    rows = [
        ExportResult("backbone", "tensorrt", None, None, precision, *[None] * 4, Verdict.SKIPPED, "no GPU here", 0.1)
        for precision in ("fp32", "fp16")
    ]
    assert remarks(rows) == [("yellow", "backbone.tensorrt fp32, backbone.tensorrt fp16: no GPU here")]
