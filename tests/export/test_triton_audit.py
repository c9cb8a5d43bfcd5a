"""The audit file: whole lines from many processes, through renaming and full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gaitsdk.errors import ServerError
from gaitsdk_export.triton.audit import Audit, hashed


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = Audit(path)
    audit.write([{"event": "enroll", "identity": "Zoë", "actor": None, "request_id": "x\n" * 1000}], durable=True)
    (line,) = lines(path)
    assert line.pop("time", "").endswith("Z")  # type: ignore[attr-defined]
    assert line == {"event": "enroll", "identity": hashed("Zoë"), "request_id": ("x\n" * 1000)[:256]}
    assert hashed("Zoë") == hashed("Zoe\u0308") != hashed("Zoe"), "as the gallery compares names"
    assert path.stat().st_mode & 0o777 == 0o600


def test_plain_names(tmp_path: Path) -> None:
    Audit(tmp_path / "audit", "plain").write([{"identity": "Zoë"}])
    assert lines(tmp_path / "audit")[0]["identity"] == "Zoë"


def test_no_audit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Audit(None).write([{"identity": "Zoë"}], durable=True)
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from gaitsdk_export.triton.audit import Audit
audit = Audit(sys.argv[1])
for i in range(int(sys.argv[3])):
    audit.write([{"who": sys.argv[2], "i": i, "half": half, "padding": "x" * (i % 200)} for half in (1, 2)])
"""


def test_lines_of_several_processes_do_not_mix_though_the_file_is_renamed(tmp_path: Path) -> None:
    path, count = tmp_path / "audit", 400
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(who), str(count)]) for who in range(4)]
    renamed = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists() and path.stat().st_size > 20_000:
            path.rename(tmp_path / f"audit.{renamed}")
            renamed += 1
    assert [writer.wait() for writer in writers] == [0] * 4
    assert renamed > 1
    found = [line for file in tmp_path.iterdir() for line in lines(file)]
    assert len(found) == 4 * count * 2
    assert len({(line["who"], line["i"], line["half"]) for line in found}) == len(found)
    for file in tmp_path.iterdir():
        there = lines(file)
        assert all(a["who"] == b["who"] and a["i"] == b["i"] for a, b in zip(there[::2], there[1::2], strict=True))


FULL = """
import resource, signal, sys
from gaitsdk.errors import ServerError
from gaitsdk_export.triton.audit import Audit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
audit = Audit(sys.argv[1])
try:
    for i in range(100):
        audit.write([{"event": "identify", "i": i}])
except ServerError as error:
    print(i, error)
"""


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    told = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True).stdout
    written = int(told.split()[0])
    assert "the audit cannot be written" in told and "GAITSDK_AUDIT" in told
    assert [line["i"] for line in lines(path)] == list(range(written))
    assert path.read_text().endswith("\n") and 900 < path.stat().st_size < 1000
    Audit(path).write([{"event": "identify", "i": written}])
    assert lines(path)[-1]["i"] == written, "the next one begins on a line of its own"


@pytest.mark.parametrize("place", ["missing/audit", "."])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    with pytest.raises(ServerError, match="the audit cannot be written"):
        Audit(tmp_path / place).write([{"event": "enroll"}])


def test_a_closed_audit_opens_again(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit")
    audit.write([{"event": "enroll"}])
    audit.close()
    audit.write([{"event": "delete"}])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        audit.close()
        audit.write([{"event": "delete"}])
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(lines(tmp_path / "audit")) == 7
