"""Writes the tables of docs/serving_load.md from the committed figures.

    python benchmarks/serving_tables.py

A test holds that the page is what this script writes. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pages import markdown, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "serving_load.md"
RESULTS = ROOT / "benchmarks" / "results"

Figures = Mapping[str, Any]


def overhead(figures: Figures) -> str:
    """Latency of one client and throughput of several, by way."""
    alone, together = figures["one_client"]["milliseconds"], figures["many_clients"]
    lines = [
        (
            name,
            f"{row['p50']:.1f}",
            f"{row['p50'] - alone['in process']['p50']:+.1f}",
            f"{row['p95']:.1f}",
            f"{together['per_second'][name]:.1f}",
            f"{together['share'][name]:.0%}",
        )
        for name, row in alone.items()
    ]
    clients = figures["clients"]
    return markdown(("", "p50, ms", "more than in process", "p95, ms", f"{clients} clients, per s", "share"), lines)


def steps(figures: Figures) -> str:
    """Where a request's time goes, alone and among others."""
    lines = []
    for title, part in (("one client", "one_client"), (f"{figures['clients']} clients", "many_clients")):
        for model, row in figures[part]["steps"].items():
            cells = (row["queue"], row["compute_input"], row["compute_infer"], row["compute_output"], row["total"])
            lines.append((f"{model}, {title}", *(f"{each:.2f}" for each in cells), f"{row['mean_batch']:.2f}"))
    return markdown(("ms of a request", "queue", "input", "compute", "output", "together", "mean batch"), lines)


def floor(figures: Figures) -> str:
    """What the server costs over this process, and what servers cost whose models do nothing."""
    lines = [("in process", "", "", f"{figures['in_process_ms']['processor']:.1f}", "")]
    for row in figures["servers"]:
        more = [f"+{row['more_ms'][way]:.1f}" for way in ("gRPC", "HTTP")]
        spent = [f"{row['processor_ms'][way]:.1f}" if row["processor_ms"] else "" for way in ("gRPC", "HTTP")]
        lines.append((row["server"], *more, *spent))
    head = ("models of the chain", "gRPC, ms more", "HTTP, ms more", "gRPC, processor ms", "HTTP, processor ms")
    return markdown(head, lines)


def batching(figures: Figures) -> str:
    """What the choices of a rendering do for a crowd of clients."""
    lines = [
        (
            str(row["max_batch"]),
            str(row["instances"]),
            str(row["threads"] or "all cores"),
            str(row["max_delay_us"]),
            f"{row['per_second']:.1f}",
            f"{row['mean_batch']:.2f}",
            f"{row['p50']:.0f}",
            f"{row['p99']:.0f}",
        )
        for row in figures["choices"]
    ]
    head = ("max_batch", "instances", "threads", "max_delay_us", "per s", "mean batch of `embed`", "p50, ms", "p99, ms")
    return markdown(head, lines)


def load(figures: Figures) -> str:
    """Clients in closed loops, then half and twice the capacity."""
    rows = [(f"{row['clients']} clients, each asks again when answered", row) for row in figures["clients"]]
    rows += [(f"random arrivals, {name} the capacity", figures[name]) for name in ("half", "twice")]
    lines = []
    for name, row in rows:
        times, refused = row["milliseconds"], sum(row["errors"].values())
        cells = (row["answered"], row["wrong"], refused, row["per_second"], round(times["p50"]), round(times["p99"]))
        lines.append((name, *map(str, cells)))
    return markdown(("load", "answered", "wrong", "refused", "answered per s", "p50, ms", "p99, ms"), lines)


def soak(figures: Figures) -> str:
    """What the server's processes held."""
    names = {"resident_mb": "resident memory, MB", "open_files": "open files", "shared_mb": "shared memory, MB"}
    lines = [
        (name, f"{figures['at_first'][key]}", f"{figures['at_last'][key]}", f"{figures['growth_per_hour'][key]:+}")
        for key, name in names.items()
    ]
    return markdown((f"{figures['seconds']:.0f} s at half load", "at first", "at last", "growth per hour"), lines)


#: The marker in the page, the figures, what makes a table of them.
TABLES: tuple[tuple[str, str, Callable[[Figures], str]], ...] = (
    ("<!-- overhead: python benchmarks/serving_overhead.py -->", "serving_overhead", overhead),
    ("<!-- steps: python benchmarks/serving_overhead.py -->", "serving_overhead", steps),
    ("<!-- floor: python benchmarks/serving_floor.py -->", "serving_floor", floor),
    ("<!-- batching: python benchmarks/serving_batching.py -->", "serving_batching", batching),
    ("<!-- load: python benchmarks/load.py -->", "load", load),
    ("<!-- soak: python benchmarks/load.py --soak -->", "load_soak", soak),
)


def main() -> None:
    for start, name, table in TABLES:
        write(PAGE, start, table(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
