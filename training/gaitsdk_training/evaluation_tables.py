"""The report of `gaitsdk evaluate` as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaitsdk_training.evaluation.evaluate import choose

#: Skipped sequences and missing identities that are shown one by one.
_SHOWN = 20


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the figures, those of each probe view where there are some, and what they were measured with."""
    console = console or Console()
    _say(console, f"{report['protocol']}: {choose(report['protocol']).about}; percent")
    console.print(_summary(report))
    if (views := _by_view(report)) is not None:
        console.print(views)
    for line in _notes(report):
        _say(console, line)
    if stages := report["two_stage"]:
        console.print(_two_stages(stages))
        for line in stages["notes"]:
            _say(console, line)


def _say(console: Console, line: str) -> None:
    # Not markup: names of files and people may hold brackets.
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summary(report: Mapping[str, Any]) -> Table:
    figures, measures = report["figures"], choose(report["protocol"]).measures
    stages = _suffixes(report, measures[0])
    table = Table("probes")
    if len(stages) > 1:
        table.add_column("order")
    for measure in measures:
        table.add_column(measure.replace("rank", "Rank-"), justify="right")
    conditions = _conditions(report)
    rows = [(condition, "", f"/{condition}") for condition in conditions]
    rows.append(("mean" if conditions else "all", "", ""))
    if "rank1_with_mate" in figures:
        rows.append(("those with a mate", "_with_mate", ""))
    for label, kind, end in rows:
        for suffix in stages:
            order = [Text("initial" if suffix else report["reranker"])] if len(stages) > 1 else []
            values = (figures.get(f"{measure}{kind}{suffix}{end}") for measure in measures)
            cells = ("" if value is None else f"{value:.2f}" for value in values)
            table.add_row(Text(label if suffix == stages[0] else ""), *order, *cells)
    return table


def _by_view(report: Mapping[str, Any]) -> Table | None:
    """Rank-1 of each probe view; None where the protocol does not tell views apart."""
    figures, conditions = report["figures"], _conditions(report)
    views = sorted({key.split("/")[2] for key in figures if key.startswith("rank1/") and key.count("/") == 2})
    if not views:
        return None
    columns = [(condition, suffix) for condition in conditions for suffix in _suffixes(report, "rank1")]
    table = Table(title="Rank-1 of each probe view")
    table.add_column("view")
    for condition, suffix in columns:
        table.add_column(Text(f"{condition}{' initial' if suffix else ''}"), justify="right")
    for view in views:
        values = (figures.get(f"rank1{suffix}/{condition}/{view}") for condition, suffix in columns)
        table.add_row(Text(view), *("" if value is None else f"{value:.2f}" for value in values))
    return table


def _two_stages(stages: Mapping[str, Any]) -> Table:
    """One column for each K, as the cells hold intervals."""
    table = Table(title="Two stages, percent (95 % interval)")
    first, *others = zip(stages["columns"], *stages["rows"], strict=True)
    for index, name in enumerate(first):
        table.add_column(f"K = {name}" if index else "", justify="right" if index else "left")
    for name, *cells in others:
        table.add_row(name, *cells)
    return table


def _notes(report: Mapping[str, Any]) -> list[str]:
    figures = report["figures"]
    parts = [f"{figures['probes']} probes kept, {figures['probes_dropped']} dropped"]
    if lonely := figures.get("probes_without_mate"):
        parts.append(f"{lonely} of those kept have no mate and count as misses")
    if lonely := figures.get("rankings_without_mate"):
        parts.append(f"{lonely} of {figures['rankings']} rankings have no mate in the gallery and count as misses")
    if absent := figures.get("probes_absent"):
        parts.append(f"{absent} listed probes are not there")
    lines = [
        f"{report['sequences']} sequences of {report['identities']} identities ({report['split']})",
        "; ".join(parts),
        *(["one identity only: whoever is asked for is found, the figures say nothing"] * (report["identities"] == 1)),
        f"{report['runtime']} on {report['device']}, {report['precision']}; {report['metric']} distance; "
        f"re-ranker {_reranker(report)}; model {report['fingerprint'][:12]}",
    ]
    if gain := report["gain"]:
        interval = f"95 % interval {gain['low']:+.2f} to {gain['high']:+.2f}"
        lines.append(f"Rank-1 gain over all rankings {gain['mean']:+.2f} points, {interval}")
    if report["submission"]:
        lines.append(f"for the server: {report['submission']}")
    if report["plots"]:
        lines.append(f"drawn: {', '.join(report['plots'])}")
    if missing := report["missing"]:
        more = f", ... ({len(missing)} in all)" if len(missing) > _SHOWN else ""
        lines.append(f"identities of the split that are not there: {', '.join(missing[:_SHOWN])}{more}")
    skipped = report["skipped"]
    lines += [f"skipped {each['sequence']}: {each['reason']}" for each in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"... and {len(skipped) - _SHOWN} more skipped; the JSON report has them all")
    return lines


def _reranker(report: Mapping[str, Any]) -> str:
    if report["reranker"] == "none":
        return "none"
    return f"{report['reranker']}, {'whole galleries' if report['k'] is None else 'K = ' + str(report['k'])}"


def _suffixes(report: Mapping[str, Any], measure: str) -> list[str]:
    return ["_initial", ""] if f"{measure}_initial" in report["figures"] else [""]


def _conditions(report: Mapping[str, Any]) -> list[str]:
    keys = (key for key in report["figures"] if key.startswith("rank1/") and key.count("/") == 1)
    return [key.removeprefix("rank1/") for key in keys]
