"""Shows a table, the paper's numbers beside ours, and keeps it as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tables.measuring import FAILED, MEASURED, Outcome
from tables.specification import Table

RESULTS = Path(__file__).resolve().parents[1] / "results" / "reproduce"
TINY = "tiny: not comparable"
THIRD_PARTY = "third party: not implemented"
#: Characters of the first two columns, and of a column of numbers.
_LABELS, _NUMBER = 32, 10
Outcomes = Mapping[tuple[int, int], Outcome]


def results_path(name: str, tiny: bool, folder: Path = RESULTS) -> Path:
    """Where the figures of a table are kept."""
    return folder / f"{name}{'-tiny' if tiny else ''}.json"


def document(table: Table, outcomes: Outcomes, about: Mapping[str, Any]) -> dict[str, Any]:
    """The table as JSON: per row, in the columns' order, the paper's numbers and ours, and what became of each."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(table.rows):
        entry: dict[str, Any] = {"label": row.label, "paper": list(row.paper)}
        if row.third_party:
            rows.append({**entry, "status": THIRD_PARTY, "authors": row.third_party})
            continue
        found = [outcomes.get((number, column)) for column in range(len(table.columns))]
        entry["ours"] = [None if each is None or each.ours is None else round(each.ours, 3) for each in found]
        entry["by_seed"] = [[] if each is None else list(each.by_seed) for each in found]
        entry["training_minutes"] = max((each.minutes for each in found if each is not None), default=0.0)
        entry["status"] = sorted({each.status for each in found if each is not None})
        reasons = sorted({each.why for each in found if each is not None and each.why})
        rows.append(entry | ({"why": reasons} if reasons else {}))
    return {"table": table.name, "title": table.title, **about, "columns": list(table.columns), "rows": rows}


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Replaces the file in one step: an interruption leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    # One line per row, so that a change of one number is a change of one line.
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in report["rows"])
    head = json.dumps({key: value for key, value in report.items() if key != "rows"}, indent=1, ensure_ascii=False)
    unfinished.write_text(f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    unfinished.replace(path)


def show(console: Console, table: Table, outcomes: Outcomes, tiny: bool) -> None:
    """Prints two lines per row, the paper's and ours, and below them why something is missing.

    What does not fit into the width of the terminal follows in a table of its own: a number is never cut.
    """
    together = max(1, (console.width - _LABELS) // _NUMBER)
    for start in range(0, len(table.columns), together):
        columns = range(start, min(start + together, len(table.columns)))
        shown = RichTable(title=Text(table.title), caption=Text(TINY) if tiny else None)
        shown.add_column("", max_width=_LABELS - 12)
        shown.add_column("", no_wrap=True)
        for column in columns:
            shown.add_column(Text(table.columns[column]), justify="right", min_width=_NUMBER - 3)
        for number, row in enumerate(table.rows):
            shown.add_row(Text(row.label), "paper", *(_paper(row.paper[column]) for column in columns))
            if not row.third_party:
                shown.add_row("", "ours", *(_ours(outcomes.get((number, column))) for column in columns))
            shown.add_section()
        console.print(shown)
    for line in [*_reasons(table, outcomes), *table.notes]:
        console.print(Text(f"* {line}"))


def _reasons(table: Table, outcomes: Outcomes) -> list[str]:
    """Why numbers of ours are missing, each reason once."""
    reasons: dict[str, None] = {}
    for row in table.rows:
        if row.third_party:
            name = row.label.partition(": ")[2] or row.label
            reasons[f"{name} ({row.third_party}): {THIRD_PARTY}"] = None
    for (number, _), each in outcomes.items():
        if each.why:
            whose = f"{table.rows[number].label}: " if each.status == FAILED else ""
            reasons[f"{whose}{each.status}: {each.why}"] = None
    return list(reasons)


def _paper(value: float | None) -> str:
    return "" if value is None else str(value)


def _ours(outcome: Outcome | None) -> str:
    if outcome is None or outcome.ours is None:
        return "" if outcome is None else outcome.status
    spread = f" ±{statistics.stdev(outcome.by_seed):.1f}" if len(outcome.by_seed) > 1 else ""
    return f"{outcome.ours:.2f}{spread}" if outcome.status == MEASURED else outcome.status
