"""Latency and throughput of every artefact that `gaitsdk export` makes and this machine can run, by batch and length.

    python benchmarks/export_matrix.py [--bundle NAME.gait] [--calls 50]

Exports a copy of the bundle (the shipped one by default) to every format in every precision, then times each artefact
in turns with the others, on one CPU thread, or on the GPU for engines. Writes benchmarks/results/export_matrix.json, a
table beside it (.md) and a picture (.png); on a machine with a GPU export_matrix_cuda.*.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaitsdk.benchmark_cli import interleaved, machine
from gaitsdk.bundle import PRECISIONS, Bundle
from gaitsdk.errors import GaitError
from gaitsdk.runtimes.tensorrt_engines import EngineNetwork, Limits
from gaitsdk.runtimes.tensorrt_runtime import ENGINE_FORMATS, import_tensorrt
from gaitsdk_export.bundles import ExportResult, export_bundle
from gaitsdk_export.cases import embedder_cases, reranker_cases
from gaitsdk_export.formats import FORMATS
from gaitsdk_export.to_onnx import onnx_network
from gaitsdk_export.to_torchscript import torchscript_network

RESULTS = Path(__file__).parent / "results"
BATCHES, LENGTHS, LISTS = (1, 4), (15, 30, 60), (10, 50)
Rows = list[dict[str, Any]]


def opened(made: ExportResult, bundle: Bundle) -> Callable[..., Any]:
    """An artefact as a function of arrays; GaitError where this machine cannot run it."""
    if made.path is None:
        raise GaitError(made.reason or "not made")
    if made.format in ENGINE_FORMATS:
        record = json.loads(made.path.with_name(f"{made.path.name}.export.json").read_text())
        if not torch.cuda.is_available():
            raise GaitError("no GPU here")
        limits = [Limits.from_record(each) for each in record["engine"]["profiles"]]
        trt, cyclic = import_tensorrt(made.format), bundle.manifest.length_handling == "cyclic"
        return EngineNetwork(trt, torch, made.path.read_bytes(), limits, "cuda:0", cyclic, made.path.name)
    return onnx_network(made.path) if made.format == "onnx" else torchscript_network(made.path)


def inputs(network: str, bundle: Bundle, batch: int, length: int) -> tuple[Any, ...]:
    spec = bundle.manifest.input
    if network == "backbone":
        return next(iter(embedder_cases(spec.size, spec.channels, (batch,), (length,)))).inputs
    return next(iter(reranker_cases(bundle.strips, bundle.dims, (batch,), (length,)))).inputs


def measure(bundle: Bundle, results: list[ExportResult], calls: int) -> tuple[Rows, dict[str, list[str]]]:
    """A row per artefact and size, and for each reason those that have none."""
    rows: Rows = []
    left_out: dict[str, list[str]] = {}
    for network, lengths in (("backbone", LENGTHS), ("reranker", LISTS)):
        running = {}
        for made in (each for each in results if each.network == network):
            name = f"{made.format} {made.precision}"
            try:
                run = opened(made, bundle)
                run(*inputs(network, bundle, 1, lengths[0]))
                running[name] = (run, made)
            except GaitError as error:
                reason = str(error).replace(f"{bundle.path.parent}{os.sep}", "").splitlines()[0]
                left_out.setdefault(reason, []).append(f"{network} {name}")
        for batch in BATCHES:
            for length in lengths:
                given = inputs(network, bundle, batch, length)
                ways = {name: partial(run, *given) for name, (run, _) in running.items()}
                for name, seconds in interleaved(ways, seconds=0.0, least=calls).items():
                    rows.append(row(running[name][1], batch, length, seconds))
    return rows, left_out


def row(made: ExportResult, batch: int, length: int, seconds: list[float]) -> dict[str, Any]:
    p50, p95, p99 = (round(1e3 * float(each), 3) for each in np.percentile(seconds, (50, 95, 99)))
    return {
        "network": made.network, "artefact": f"{made.format} {made.precision}", "bytes": made.size_bytes,
        "batch": batch, "length": length, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99,
        "items_per_second": round(1e3 * batch / p50, 1), "calls": len(seconds),
    }  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Artefacts of the shipped bundle: latency and throughput\n",
        ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + f"; {report['where']}.",
        "Length: frames of a walk, candidates of a list. Made by `benchmarks/export_matrix.py`.\n",
        "| network | artefact | batch | length | p50 ms | p95 ms | p99 ms | items/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = ("network", "artefact", "batch", "length", "p50_ms", "p95_ms", "p99_ms", "items_per_second")
    lines += ["| " + " | ".join(str(each[key]) for key in keys) + " |" for each in report["rows"]]
    lines += ["\nNot measured:\n", *(f"* {', '.join(names)}: {why}" for why, names in report["left_out"].items())]
    return "\n".join(lines) + "\n"


def draw(rows: Rows, path: Path) -> None:
    """Latency of a walk by its length, and walks a second by the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    walks = [each for each in rows if each["network"] == "backbone"]
    names = list(dict.fromkeys(each["artefact"] for each in walks))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, name in enumerate(names):
        one = [each for each in walks if each["artefact"] == name and each["batch"] == 1]
        lengths = [each["length"] for each in one]
        left.plot(lengths, [each["p50_ms"] for each in one], marker="o", color=f"C{place}", label=name)
        low, high = ([each[key] for each in one] for key in ("p50_ms", "p95_ms"))
        left.fill_between(lengths, low, high, color=f"C{place}", alpha=0.2)
        many = [each for each in walks if each["artefact"] == name and each["length"] == 30]
        width = 0.8 / len(names)
        spots = [index + place * width for index in range(len(many))]
        right.bar(spots, [each["items_per_second"] for each in many], width, color=f"C{place}", label=name)
    left.set(xlabel="frames", ylabel="ms", title="one walk: median, shaded to the 95th of 100", xticks=LENGTHS, ylim=0)
    middle = [index + 0.4 - 0.4 / len(names) for index in range(len(BATCHES))]
    right.set(ylabel="walks a second", title="walks of 30 frames")
    right.set_xticks(middle, [f"batch {batch}" for batch in BATCHES])
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Bundle.default_path())
    parser.add_argument("--calls", type=int, default=50, help="of each artefact at each size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / options.bundle.name
        shutil.copytree(options.bundle, path)
        results = export_bundle(path, FORMATS, verify=False, precisions=PRECISIONS)
        bundle = Bundle.load(path)
        rows, left_out = measure(bundle, results, options.calls)
    gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if gpu else "one thread"
    report = {
        "command": "python benchmarks/export_matrix.py", "bundle": bundle.manifest.name, "machine": machine(),
        "where": where, "rows": rows, "left_out": left_out,
    }  # fmt: skip
    target = RESULTS / ("export_matrix_cuda.json" if gpu else "export_matrix.json")
    target.write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    draw(rows, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
