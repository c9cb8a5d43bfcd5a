"""How long `import gaitsdk` takes in a fresh interpreter, and what it loads.

    python benchmarks/import_time.py

Prints medians of 15 interpreters and writes benchmarks/results/import_time.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "import_time.json"
STATEMENTS = ("import numpy", "import gaitsdk", "from gaitsdk import Recognizer")
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "tritonclient", "PIL", "pydantic")
CODE = """
import sys, time
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
print(seconds, *(name for name in {heavy} if name in sys.modules))
"""


def measure(statement: str) -> dict[str, object]:
    seconds, loaded = [], set()
    for _ in range(15):
        code = CODE.format(statement=statement, heavy=HEAVY)
        first, *names = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        seconds.append(float(first))
        loaded |= set(names)
    return {"milliseconds": round(statistics.median(seconds) * 1e3, 1), "heavy_packages_loaded": sorted(loaded)}


def main() -> None:
    report = {
        "command": "python benchmarks/import_time.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "statements": {statement: measure(statement) for statement in STATEMENTS},
    }
    print(json.dumps(report, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
