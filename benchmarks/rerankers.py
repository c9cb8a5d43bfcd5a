"""Milliseconds per probe of every re-ranker on a list of ten, as in CarGait's Table 4, and k-reciprocal on a gallery.

    python benchmarks/rerankers.py [--probes 200] [--full 10000] [--device cuda]

The lists are random features of 10 candidates, s = 16, d = 256, one thread (OMP_NUM_THREADS is set to 1). Each
re-ranker gets one probe in a call (as a recogniser that answers one question), in turns with the others, so that a busy
machine disturbs all alike, and then all probes in one call. CarGait and the binary classifier run in ONNX Runtime, as a
bundle's default runtime does, and in eager PyTorch; their weights are random, which costs the same. With --device cuda
only CarGait runs, in PyTorch.
--full 0 leaves the whole gallery out: k-reciprocal with scope "full", a fifth of the maps being probes, in a process of
its own, so that its memory can be told. Writes benchmarks/results/rerankers.json (rerankers_cuda.json).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from gaitsdk import rerankers
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_export.to_onnx import onnx_network, to_onnx
from gaitsdk_export.wrappers import RerankerForExport

RESULTS = Path(__file__).parent / "results"
K, STRIPS, DIMS = 10, 16, 256
PAPER = {"k-reciprocal": 214.0, "lbr": 19.81, "gcr": 1866.0, "cargait": 6.52}  # Table 4, on an A100
PARAMETER_FREE = ("none", "k-reciprocal", "lbr", "gcr", "query-expansion")

Rescore = Callable[[np.ndarray, np.ndarray], Any]


def lists(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probes [n, s, d] and candidates [n, K, s, d] that have something in common."""
    rng = np.random.default_rng(0)
    probes = rng.standard_normal((count, STRIPS, DIMS)).astype(np.float32)
    share = rng.uniform(0, 1, (count, K, 1, 1)).astype(np.float32)
    others = rng.standard_normal((count, K, STRIPS, DIMS)).astype(np.float32)
    return probes, share * probes[:, None] + (1 - share) * others


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    cargait = CarGait(DIMS)
    torch.nn.init.normal_(cargait.output.weight, std=0.02)
    return {"cargait": cargait.eval(), "classifier": PairClassifier(DIMS, STRIPS).eval()}


def compiled(network: torch.nn.Module) -> Rescore:
    """The network in ONNX Runtime on one thread, as `gaitsdk export` compiles it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reranker.onnx"
        to_onnx(RerankerForExport(network, STRIPS, DIMS), path, cases=None)
        run = onnx_network(path)
    return lambda probe, candidates: run(probe, candidates)[0]


def eager(network: torch.nn.Module, device: str) -> Rescore:
    network = network.to(device)

    def rescore(probe: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = network(torch.from_numpy(probe).to(device), torch.from_numpy(candidates).to(device))
            return found.cpu().numpy()  # waits for the device

    return rescore


def ways(device: str) -> dict[str, tuple[str, Rescore]]:
    """label -> (name of the re-ranker, what answers)."""
    if device != "cpu":
        return {f"cargait, PyTorch on {device}": ("cargait", eager(networks()["cargait"], device))}
    found = {f"{name}, NumPy": (name, rerankers.create(name).rescore) for name in PARAMETER_FREE}
    for name, network in networks().items():
        found[f"{name}, ONNX Runtime"] = (name, compiled(network))
        found[f"{name}, PyTorch"] = (name, eager(network, device))
    return found


def top_ten(device: str, count: int) -> dict[str, Any]:
    """Median, best and worst milliseconds of a call with one probe, and per probe of a call with all."""
    probes, candidates = lists(count)
    chosen = ways(device)
    seconds: dict[str, list[float]] = {label: [] for label in chosen}
    for row in range(-5, count):  # five to warm up
        part = slice(max(row, 0), max(row, 0) + 1)
        for label, (_, rescore) in chosen.items():
            started = time.perf_counter()
            rescore(probes[part], candidates[part])
            if row >= 0:
                seconds[label].append(time.perf_counter() - started)
    figures = {}
    for label, (name, rescore) in chosen.items():
        together = []
        for _ in range(3):
            started = time.perf_counter()
            rescore(probes, candidates)
            together.append(time.perf_counter() - started)
        figures[label] = {
            "milliseconds": round(1e3 * statistics.median(seconds[label]), 3),
            "best": round(1e3 * min(seconds[label]), 3),
            "worst": round(1e3 * max(seconds[label]), 3),
            "milliseconds_together": round(1e3 * min(together) / count, 3),
            "paper_milliseconds": PAPER.get(name),
        }
    return figures


def full(count: int) -> dict[str, Any]:
    """k-reciprocal with everybody's neighbours among everybody: seconds and the process's peak of memory."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((count // 10, STRIPS, DIMS)).astype(np.float32)
    maps = people[rng.integers(0, len(people), count)]
    for start in range(0, count, 1000):
        part = maps[start : start + 1000]
        part += 1.5 * rng.standard_normal(part.shape, dtype=np.float32)
    before = peak()
    started, cpu = time.perf_counter(), time.process_time()
    found = rerankers.create("k-reciprocal", "full").rescore_all(maps[: count // 5], maps[count // 5 :])
    return {
        "maps": count,
        "probes": len(found),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "megabytes_of_features": round(maps.nbytes / 1e6),
        "megabytes_before": round(before),
        "megabytes_at_the_peak": round(peak()),
    }


def peak() -> float:
    """The process's largest memory so far, in MB. (`getrusage` would count that of the process which started it.)"""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1e3


def machine(device: str) -> str:
    gpu = "" if device == "cpu" else f", {torch.cuda.get_device_name(device)}"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()},"
        f" NumPy {np.__version__}, PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, one thread"
        f" (load {os.getloadavg()[0]:.0f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--full", type=int, default=10_000, help="maps of the whole gallery; 0 = leave it out")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":  # NumPy has read it by now: again, with it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    console = Console()
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "list": {"k": K, "strips": STRIPS, "dims": DIMS, "probes": options.probes},
        "top_10": top_ten(options.device, options.probes),
    }
    if options.full and options.device == "cpu":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            report["k_reciprocal_full"] = pool.apply(full, (options.full,))
    table = Table("re-ranker", "ms per probe", "of many at once", "paper (A100)", title=f"top {K}, one thread")
    for label, figures in report["top_10"].items():
        paper = "" if figures["paper_milliseconds"] is None else f"{figures['paper_milliseconds']:.2f}"
        table.add_row(label, f"{figures['milliseconds']:.2f}", f"{figures['milliseconds_together']:.2f}", paper)
    console.print(table)
    console.print(report.get("k_reciprocal_full", ""), report["machine"])
    name = "rerankers.json" if options.device == "cpu" else "rerankers_cuda.json"
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
