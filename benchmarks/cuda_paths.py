"""Every way to run the networks on a GPU, side by side: eager, CUDA graphs, TorchScript, ONNX Runtime, TensorRT.

    python benchmarks/cuda_paths.py [--bundle NAME.gait] [--seconds 5]

What `gaitsdk benchmark --device cuda` measures, of a copy of the bundle (the shipped one by default) that has every
artefact which this machine can make. `runtime torch` is PyTorch with a CUDA graph per size; transfers to and from the
GPU count. What is not installed has no row and is named in the JSON. Writes benchmarks/results/cuda_paths.json. Needs a
CUDA GPU, and refuses to run without one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from gaitsdk.benchmark_cli import embedding, report, reranking, table
from gaitsdk.bundle import Bundle
from gaitsdk_export.bundles import export_bundle
from gaitsdk_export.formats import FORMATS

RESULTS = Path(__file__).parent / "results" / "cuda_paths.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Bundle.default_path())
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long to repeat each measurement")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"no GPU: torch {torch.__version__} finds no CUDA device; nothing was measured")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / options.bundle.name
        shutil.copytree(options.bundle, path)
        results = export_bundle(path, FORMATS, precisions=("fp32",))
        bundle = Bundle.load(path)
        rows = [*embedding(bundle, "cuda:0", 1, options.seconds), *reranking(bundle, "cuda:0", options.seconds)]
        found = report(bundle, rows, 1)
    Console().print(table(rows))
    missing = {f"{each.network} {each.format}": each.reason for each in results if each.path is None}
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "not_made": missing}
    RESULTS.write_text(json.dumps({"command": "python benchmarks/cuda_paths.py", **gpu, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
