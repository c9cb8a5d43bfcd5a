"""Embedding with the default runtime against eager PyTorch, and with INT8 beside them; on one thread.

    python benchmarks/embed.py [--seconds 10]

The shipped bundle, 30 frames, batch 1 and 8, in turns: what `gaitsdk benchmark` measures, of a copy of the bundle that
has the INT8 artefact too. Writes benchmarks/results/embed.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from gaitsdk.benchmark_cli import embedding, report, table
from gaitsdk.bundle import Bundle
from gaitsdk_export.bundles import export_bundle

RESULTS = Path(__file__).parent / "results" / "embed.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to repeat each measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "default.gait"
        shutil.copytree(Bundle.default_path(), path)
        for made in export_bundle(path, ["onnx", "onnx-int8"], verify=False):
            made.raise_for_verdict()
        bundle = Bundle.load(path)
        rows = embedding(bundle, "cpu", 1, options.seconds)
        found = report(bundle, rows, 1)
        Console().print(table(rows))
    RESULTS.write_text(json.dumps({"command": "python benchmarks/embed.py", **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
