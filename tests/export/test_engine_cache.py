"""The cache of engines, used by real processes at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gaitsdk.errors import ExportError
from gaitsdk_export import engine_cache
from gaitsdk_export.engine_cache import EngineCache, EngineKey

KEY = EngineKey(
    onnx_sha256="0" * 64,
    builder="tensorrt",
    builder_version="10.9.0",
    compute_capabilities=(89,),
    gpu="NVIDIA L4",
    precision="fp16",
    profiles=({"batch": (1, 8, 64), "frames": (15, 30, 120)},),
    flags=("strongly_typed",),
)

#: A builder in a process of its own: notes that it began, works for a while, gives an engine with its number.
BUILDER = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from test_engine_cache import KEY
from gaitsdk_export.engine_cache import EngineCache
folder, number, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def build():
    (folder / f"began-{{number}}").touch()
    time.sleep(seconds)
    return b"engine of " + number.encode()
waits = folder / f"waits-{{number}}"
engine, built = EngineCache(folder / "cache").get_or_build(KEY, build, lambda line: waits.touch())
print(engine.decode(), built)
"""


def start(folder: Path, number: int, seconds: float) -> subprocess.Popen[str]:
    import gaitsdk
    import gaitsdk_export

    paths = [str(Path(each.__file__).parents[1]) for each in (gaitsdk, gaitsdk_export)]
    code = BUILDER.format(path=[str(Path(__file__).parent), *paths])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(number), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    first = start(tmp_path, 1, 600)  # so long that it can only end by our hand
    wait_for(tmp_path / "began-1")
    second = start(tmp_path, 2, 0)
    wait_for(tmp_path / "waits-2")
    assert not (tmp_path / "began-2").exists()
    # The builder dies without a chance to tidy up: the one that waits takes its place.
    first.send_signal(signal.SIGKILL)
    first.wait()
    output, errors = second.communicate(timeout=120)
    assert output.split() == ["engine", "of", "2", "True"], errors
    third = start(tmp_path, 3, 0)
    assert third.communicate(timeout=120)[0].split() == ["engine", "of", "2", "False"]
    assert not (tmp_path / "began-3").exists()


def test_the_one_that_waits_gets_the_engine_of_the_other(tmp_path):
    first = start(tmp_path, 1, 3)
    wait_for(tmp_path / "began-1")
    second = start(tmp_path, 2, 0)
    for process, built in ((first, "True"), (second, "False")):
        assert process.communicate(timeout=120)[0].split() == ["engine", "of", "1", built]
    assert not (tmp_path / "began-2").exists()


def test_every_part_of_the_key_counts_and_is_named():
    others = {
        "onnx_sha256": "1" * 64,
        "builder": "tensorrt-rtx",
        "builder_version": "11.0",
        "compute_capabilities": (80,),
        "gpu": None,
        "precision": "bf16",
        "profiles": ({"batch": (1, 8, 32), "frames": (15, 30, 120)},),
        "flags": (),
    }
    assert set(others) == set(KEY.to_dict())
    for field, value in others.items():
        other = replace(KEY, **{field: value})
        assert other.digest != KEY.digest
        (difference,) = KEY.differences(other.to_dict())
        assert difference.startswith(f"{field} ") and " instead of " in difference
    assert KEY.differences(KEY.to_dict()) == []


def test_a_damaged_or_foreign_entry_is_built_again(tmp_path, caplog):
    cache = EngineCache(tmp_path)
    assert cache.get_or_build(KEY, lambda: b"first") == (b"first", True)
    assert cache.get_or_build(KEY, lambda: b"second") == (b"first", False)
    engine = tmp_path / f"{KEY.digest}.engine"
    engine.write_bytes(b"fir")  # cut short
    assert cache.get_or_build(KEY, lambda: b"third") == (b"third", True)
    assert "damaged" in caplog.text
    for broken in ("{", "[]", json.dumps({"sha256": "0"})):
        engine.with_suffix(".json").write_text(broken)
        assert cache.get(KEY) is None
    record = {"key": replace(KEY, gpu="Tesla T4").to_dict(), "sha256": "0" * 64}
    engine.with_suffix(".json").write_text(json.dumps(record))
    assert cache.get_or_build(KEY, lambda: b"fourth") == (b"fourth", True)
    assert "gpu 'Tesla T4' instead of 'NVIDIA L4'" in caplog.text
    assert sorted(each.suffix for each in tmp_path.iterdir()) == [".engine", ".json", ".lock"]


def test_a_build_that_fails_leaves_nothing_and_lets_the_next_one_try(tmp_path):
    def fail() -> bytes:
        raise KeyboardInterrupt

    cache = EngineCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build(KEY, fail)
    assert [each.suffix for each in tmp_path.iterdir()] == [".lock"]
    assert cache.get_or_build(KEY, lambda: b"x") == (b"x", True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="GAITSDK_ENGINE_CACHE"):
        EngineCache(tmp_path / "file" / "cache").get_or_build(KEY, lambda: b"x")


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left"):
        EngineCache(tmp_path).get_or_build(KEY, lambda: b"x")
    assert [each.suffix for each in tmp_path.iterdir()] == [".lock"]


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(engine_cache.VARIABLE, raising=False)
    assert EngineCache().folder == tmp_path / "gaitsdk" / "engines"
    monkeypatch.setenv(engine_cache.VARIABLE, str(tmp_path / "own"))
    assert EngineCache().folder == tmp_path / "own"
