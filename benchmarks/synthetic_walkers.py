"""The synthetic walkers: how fast they are made, and how far the simplest recogniser gets on them.

    python benchmarks/synthetic_walkers.py [--identities 50] [--frames 30]

GEI (mean silhouette) and nearest neighbour by the CASIA-B protocol: gallery nm-01..04, probes nm-05/06, bg-01/02,
cl-01/02, every pair of views on its own. Prints a table and writes benchmarks/results/synthetic_walkers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gaitsdk import synthetic

RESULTS = Path(__file__).parent / "results" / "synthetic_walkers.json"
PROBES = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}
GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")


def make(identities: int, frames: int) -> tuple[dict[tuple[str, str], np.ndarray], float]:
    """GEIs [identities, 4096] of every (type, view), and frames per second of one process."""
    rows: dict[tuple[str, str], list[np.ndarray]] = {}
    seconds, started = 0.0, time.perf_counter()
    for item in synthetic.dataset(range(1, identities + 1), frames=frames):
        seconds += time.perf_counter() - started
        rows.setdefault((item.type, item.view), []).append(item.silhouettes.astype(np.float32).mean(0).ravel())
        started = time.perf_counter()
    count = identities * len(synthetic.TYPES) * len(synthetic.VIEWS) * frames
    return {key: np.stack(value) for key, value in rows.items()}, count / seconds


def rank1(gei: dict[tuple[str, str], np.ndarray], probes: tuple[str, ...]) -> np.ndarray:
    """Rank-1 in percent per (probe view, gallery view), [11,11]."""
    people = len(next(iter(gei.values())))
    table = np.zeros((len(synthetic.VIEWS), len(synthetic.VIEWS)))
    for i, probe_view in enumerate(synthetic.VIEWS):
        probe = np.concatenate([gei[kind, probe_view] for kind in probes])
        for j, gallery_view in enumerate(synthetic.VIEWS):
            gallery = np.concatenate([gei[kind, gallery_view] for kind in GALLERY])
            squared = (gallery * gallery).sum(1) - 2 * probe @ gallery.T
            table[i, j] = 100 * (squared.argmin(1) % people == np.arange(len(probe)) % people).mean()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console()
    gei, speed = make(options.identities, options.frames)
    table = Table(title=f"GEI + nearest neighbour, {options.identities} synthetic identities, Rank-1 %")
    for column in ("probes", "same view", "other views"):
        table.add_column(column)
    report: dict[str, Any] = {
        "command": f"benchmarks/synthetic_walkers.py --identities {options.identities} --frames {options.frames}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}, shared with other work",
        "frames_per_second_one_process": round(speed),
        "identities": options.identities,
        "rank1": {},
    }
    for name, kinds in PROBES.items():
        found = rank1(gei, kinds)
        same = float(np.diag(found).mean())
        cross = float((found.sum() - np.trace(found)) / (found.size - len(found)))
        report["rank1"][name] = {"same_view": round(same, 2), "other_views": round(cross, 2)}
        table.add_row(name, f"{same:.1f}", f"{cross:.1f}")
    report["rank1_other_views_mean"] = round(float(np.mean([v["other_views"] for v in report["rank1"].values()])), 2)
    console.print(table)
    console.print(f"mean over NM, BG, CL, identical view excluded: {report['rank1_other_views_mean']:.1f} %")
    console.print(f"{speed:.0f} normalised frames per second, one process")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
