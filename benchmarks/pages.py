"""Markdown tables between two markers of a documentation page; what stands around them is written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

END = "<!-- end of tables -->"


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    cells = [list(head), *map(list, lines)]
    ruler = ["---", *("---:" for _ in cells[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], ruler, *cells[1:]))


def written(page: str, name: str, start: str, tables: str) -> str:
    """The page with what stands between `start` and `END` replaced."""
    before, found, rest = page.partition(start)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{name} lacks the markers {start} and {END}")
    return f"{before}{start}\n\n{tables}\n\n{END}{after}"


def write(path: Path, start: str, tables: str) -> None:
    """Replaces the tables of a page."""
    path.write_text(written(path.read_text(encoding="utf-8"), path.name, start, tables), encoding="utf-8")
