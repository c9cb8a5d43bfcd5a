"""Writes the tables of docs/proof.md from the committed figures of benchmarks/proof_of_learning.py.

    python benchmarks/proof_table.py

A test holds that the page is what this script writes. Nothing is measured here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import markdown, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "proof.md"
RESULTS = ROOT / "benchmarks" / "results" / "proof_of_learning.json"
START = "<!-- tables: python benchmarks/proof_table.py -->"
COLUMNS = {"rank1/NM": "NM", "rank1/BG": "BG", "rank1/CL": "CL", "rank1": "mean", "rank5": "Rank-5"}


def cell(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table(arms: Mapping[str, Mapping[str, Mapping[str, float]]], base: str) -> str:
    """One line per arm: Rank-1 by condition over the seeds, and how much the mean gains over `base`, seed by seed."""
    lines = []
    for arm, seeds in arms.items():
        cells = [cell([each[key] for each in seeds.values()]) for key in COLUMNS]
        lines.append((arm, *cells, "" if arm == base else gain(arms[base], seeds), str(len(seeds))))
    return markdown(("arm", *COLUMNS.values(), f"against {base}, each seed", "seeds"), lines)


def gain(base: Mapping[str, Mapping[str, float]], seeds: Mapping[str, Mapping[str, float]]) -> str:
    """Differences of the mean Rank-1; a base that has no seeds of its own is compared with all."""
    only = next(iter(base.values())) if len(base) == 1 else None
    pairs = ((figures, only or base.get(seed)) for seed, figures in seeds.items())
    return ", ".join(f"{figures['rank1'] - other['rank1']:+.1f}" for figures, other in pairs if other is not None)


def tables(report: Mapping[str, Any]) -> str:
    """All that stands between the markers."""
    parts = []
    if "gaitmpl" in report:
        about = report["gaitmpl_setting"]
        parts += [
            f"GaitMPL: {about['steps']:,} steps on {about['sequences']:,} sequences of {about['identities']} walkers, "
            f"measured on {about['test_identities']} others. Rank-1 in percent.",
            "",
            table(report["gaitmpl"], "GaitSet"),
            "",
        ]
    if "cargait" in report:
        about = report["cargait_setting"]
        parts += [
            f"CarGait: {about['steps']:,} steps on lists of {about['identities'][0]} walkers, the best step chosen on "
            f"{about['identities'][1]}, measured on {about['test_identities']} others, K = {about['k']}.",
            "",
            table(report["cargait"], "initial ranking"),
            "",
        ]
    return "\n".join([*parts, f"Measured on: {report['machine']}."])


def main() -> None:
    write(PAGE, START, tables(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
