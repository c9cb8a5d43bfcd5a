"""`gaitsdk demo` is the product in one command: it must run, and both ways must give the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from gaitsdk_export.triton.installation import find_server


def test_demo(tmp_path: Path, installation: object) -> None:
    assert find_server() is not None
    command = [sys.executable, "-m", "gaitsdk.cli", "demo", "--identities", "4", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/demo.json").read_text())
    assert report["identical"] and report["same_lists"] == report["probes"] == 36
    assert set(report["ways"]) == {"in-process", "Triton"}
    with Image.open(tmp_path / "out/ranked_lists.png") as picture:
        assert picture.width > 1000 and len(picture.getcolors(100000) or []) > 5
