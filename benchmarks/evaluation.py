"""How long the evaluation of a data set of OU-MVLP's size takes, and how much memory: ranking alone, no embedding.

    python benchmarks/evaluation.py [--identities 5154] [--views 14] [--protocol oumvlp]

Random features of 16 strips x 256 dimensions: each identity has a centre, each sequence noise around it, so that the
figures are neither 0 nor 100. Every pair of a probe view and a gallery view is ranked (14 x 14 galleries of 5,154
entries for 5,154 probes each: 5.2 thousand million distances of 16 strips). Random features are the worst case: nothing
can be left out. Writes benchmarks/results/evaluation.json; the limits are those that the project promises.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from gaitsdk_training.evaluation import evaluate

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
STRIPS, DIMS = 16, 256
#: Length of an identity's centre in units of the noise.
SIGNAL = 0.25
#: What is promised for 5,154 identities and 14 views on two cores.
MINUTES, GIBIBYTES = 10.0, 8.0


def features(identities: int, views: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F [n, s, d] and the names: two types of every identity in every view, one sequence after another in memory."""
    rng = np.random.default_rng(seed)
    count = identities * 2 * views
    maps = np.empty((count, STRIPS, DIMS), np.float32)
    for row in range(0, count, 2 * views):
        block = maps[row : row + 2 * views]
        rng.standard_normal(dtype=np.float32, out=block)
        block += SIGNAL * rng.standard_normal((STRIPS, DIMS), dtype=np.float32)
    labels = np.repeat([f"{2 * number + 2:05d}" for number in range(identities)], 2 * views)
    types = np.tile(np.repeat(["00", "01"], views), identities)
    angles = np.tile([f"{15 * view:03d}" for view in range(views)], 2 * identities)
    return maps, labels, types, angles


def peak_gibibytes() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=5154)
    parser.add_argument("--views", type=int, default=14)
    parser.add_argument("--protocol", default="oumvlp", choices=["oumvlp", "oumvlp-cross-view"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    load = os.getloadavg()[0]
    data = features(options.identities, options.views)
    made = peak_gibibytes()
    started, cpu = time.perf_counter(), time.process_time()
    with Progress(console=console) as bar:
        task = bar.add_task("ranking", total=None)
        figures = evaluate(
            *data,
            protocol=options.protocol,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    seconds, worked = time.perf_counter() - started, time.process_time() - cpu
    report: dict[str, Any] = {
        "command": "python benchmarks/evaluation.py"
        f" --identities {options.identities} --views {options.views} --protocol {options.protocol}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" NumPy {np.__version__}, {os.environ.get('OMP_NUM_THREADS', 'all')} BLAS thread(s) per ranking thread",
        "load_before": round(load, 1),
        "sequences": len(data[0]),
        "strips": STRIPS,
        "dims": DIMS,
        "minutes": round(seconds / 60, 2),
        "cpu_minutes": round(worked / 60, 2),
        "peak_gibibytes": round(peak_gibibytes(), 2),
        "of_these_the_features": round(made, 2),
        "limits": {"minutes": MINUTES, "gibibytes": GIBIBYTES},
        "figures": {key: value for key, value in figures.items() if key.count("/") < 1},
    }
    Console().print_json(json.dumps(report))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
