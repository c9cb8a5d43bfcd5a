"""Writes the tables of docs/results.md from the committed figures of real_walks.py and reproduce.py.

    python benchmarks/results_table.py

A test holds that the page is what this script writes. Nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import markdown, write
from tables.report import results_path
from tables.specification import read_table, table_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
REAL = ROOT / "benchmarks" / "results" / "real_walks.json"
REAL_START = "<!-- tables: python benchmarks/real_walks.py -->"
PAPERS_START = "<!-- tables: python benchmarks/reproduce.py -->"
CONDITIONS = ("NM", "BG", "CL", "mean")
#: The first column of what CarGait does.
REAL_WALKS = "real walks"
DASH = "–"  # noqa: RUF001 (the dash of an empty cell)
#: Rows of the counts, by what they are called in the figures.
COUNTS = {
    "found_before": "right before CarGait",
    "to_mend": "not first, but among the first K: could be mended",
    "out_of_reach": "not among the first K: out of reach",
    "mended": "mended",
    "spoiled": "spoiled",
    "found_after": "right after CarGait",
    "pairs_right_before": "pairs of a list in the right order, before",
    "pairs_right_after": "pairs of a list in the right order, after",
}


def rank1_table(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Rank-1 and the gain over the initial ranking by method, with intervals; the list's block, then the full one."""
    lines = []
    for scope, methods in tables.items():
        for method, row in methods.items():
            name = method if scope == "list" else f"{method}, everything"
            cells = [f"{row[each]['rank1']:.1f} {_span(row[each]['interval'])}" for each in CONDITIONS]
            gain = row["mean"]
            base = method == "initial"
            lines.append((name, *cells, "" if base else f"{gain['gain']:+.1f} {_span(gain['gain_interval'])}"))
    return markdown(("method", *CONDITIONS, "mean against initial"), lines)


def effect_table(effects: Mapping[str, Any]) -> str:
    """What there was to mend and what became of it, for each set of data."""
    lines = [(name, *(f"{each['all'][key]:.1f}" for each in effects.values())) for key, name in COUNTS.items()]
    return markdown(("share of the rankings (of the pairs), %", *effects), lines)


def shares_table(effects: Mapping[str, Any]) -> str:
    """Rank-1 where only a share of the attention's part is used."""
    shares = list(next(iter(effects.values()))["rank1_by_share"])
    lines = []
    for name, each in effects.items():
        lines.append((f"{name}: Rank-1", *(f"{each['rank1_by_share'][t]:.1f}" for t in shares)))
        lines.append((f"{name}: pairs", *(f"{each['pairs_right_by_share'][t]:.1f}" for t in shares)))
    return markdown(("share t of the attention's part", *shares), lines)


def lengths_table(effects: Mapping[str, Any]) -> str:
    """Rank-1 where CarGait re-orders fewer than K."""
    lengths = list(next(iter(effects.values()))["rank1_by_k"])
    lines = [(f"{name}: Rank-1", *(f"{each['rank1_by_k'][n]:.1f}" for n in lengths)) for name, each in effects.items()]
    return markdown(("re-ordered candidates", *lengths), lines)


def parts_table(effect: Mapping[str, Any]) -> str:
    """Where CarGait mends and spoils: by angle between the cameras, positives in the list, and person."""
    lines = []
    for kind, title in (
        ("by_angle", "{} degrees between the cameras"),
        ("by_positives_in_list", "{} of the person's entries among the first K"),
        ("by_person", "person {}"),
    ):
        for name, row in effect[kind].items():
            cells = (f"{row[key]:.1f}" for key in ("found_before", "mended", "spoiled", "found_after"))
            lines.append((title.format(name), f"{row['rankings']:,}", *cells))
    return markdown(("rankings", "number", "right before", "mended", "spoiled", "right after"), lines)


def real_tables(report: Mapping[str, Any]) -> str:
    """All about the real walks."""
    effects = report["effect"]
    parts = [
        f"{report['sequences']} sequences of {report['identities']} people, {report['rankings']:,} rankings across "
        f"views, K = {report['k']}. Rank-1 in percent by CASIA-B's protocol, in brackets the interval "
        f"({report['intervals']}). *Everything*: the method sees all probes and the whole gallery of a view pair.",
        "", rank1_table(report["tables"]), "",
    ]  # fmt: skip
    if "apart" in report:
        parts += [f"Probes of the others only, without {', '.join(report['apart'])}:", ""]
        parts += [rank1_table(report["tables_without"]), ""]
    parts += ["What CarGait does to the lists:", "", effect_table(effects), "", shares_table(effects), ""]
    parts += [lengths_table(effects), ""]
    parts += ["On the real walks:", "", parts_table(effects[REAL_WALKS]), ""]
    return "\n".join([*parts, f"Measured on: {report['machine']}; {report['runtime']}, model {report['model'][:12]}."])


def papers_table() -> str:
    """Per table of the papers: the command, what is ours to run, and what was run here."""
    lines = []
    for name in table_names():
        table = read_table(name)
        ours = sum(any(row.cells) for row in table.rows)
        lines.append(
            (
                table.title,
                f"`{name}`",
                f"{ours} of {len(table.rows)}",
                _ran(results_path(name, tiny=False)),
                _ran(results_path(name, tiny=True)),
            )
        )
    head = ("table", "`reproduce.py ...`", "rows of ours", "run on its data", "run with --tiny")
    return markdown(head, lines)


def _ran(path: Path) -> str:
    if not path.exists():
        return DASH
    report = json.loads(path.read_text(encoding="utf-8"))
    numbers = [value for row in report["rows"] for value in row.get("ours", [])]
    measured = sum(value is not None for value in numbers)
    return f"{measured} numbers, {report['cpu_minutes']:.1f} min"


def _span(interval: list[float]) -> str:
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def main() -> None:
    if REAL.exists():
        write(PAGE, REAL_START, real_tables(json.loads(REAL.read_text(encoding="utf-8"))))
    write(PAGE, PAPERS_START, papers_table())


if __name__ == "__main__":
    main()
