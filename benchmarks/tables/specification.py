"""Reads a table: the YAML file with the paper's numbers and, of each row and column, what it is measured by.

    title: ...                                  what the table is
    notes: [...]                                what the paper leaves open, where its own numbers do not fit together
    common: {dataset: casiab}                   fields of `Cell` that all numbers share
    columns: {NM: {condition: NM}}              those of a column
    rows: {GaitSet: {backbone: gaitset, paper: [94.2]}}   those of a row, and the paper's numbers in the columns' order

A cell has the fields of all three; a row's win over a column's. `third_party` in a row names the authors of a method
that is not ours to run; null is where the paper has no number, and nothing is run for it. A row without `paper` is
run although the paper gives no numbers (a figure).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gaitsdk.errors import OptionError
from gaitsdk_training.documents import read_document

FOLDER = Path(__file__).parent
#: The metric of tables that time something, which need no data.
MILLISECONDS = "milliseconds"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one number of a table is measured by.

    Attributes:
        metric: "rank1", "rank5", "mAP" in percent, or "milliseconds" per probe.
        condition, view: of the probes; "" = the mean over them.
        dataset: "casiab", "oumvlp", "gait3d" or "grew".
        backbone, training: the architecture, trained by its recipe for the data set with these fields changed.
        more_steps: by which its training is then prolonged.
        reranker: "none", "cargait", "classifier", or one without weights.
        reranking, v: changed fields of the re-ranker's training, and the length of its lists.
        k: of the list that is re-ranked.
        device: "cpu" or "cuda", for milliseconds.
    """

    metric: str
    condition: str = ""
    view: str = ""
    dataset: str = ""
    backbone: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    more_steps: int = 0
    reranker: str = "none"
    reranking: Mapping[str, Any] = field(default_factory=dict)
    v: int = 30
    k: int = 10
    device: str = ""

    def figure(self, figures: Mapping[str, float]) -> float | None:
        """Its number among those of `evaluate`; None where the data have no such view or condition."""
        if not self.view or self.condition:
            parts = [each for each in (self.metric, self.condition, self.view) if each]
            return figures.get("/".join(parts))
        found = [
            value
            for key, value in figures.items()
            if key.startswith(f"{self.metric}/") and key.count("/") == 2 and key.endswith(f"/{self.view}")
        ]
        return sum(found) / len(found) if found else None

    def run(self) -> str:
        """What has to be trained and evaluated for it, as a key: cells that differ in the figure only share it."""
        picked = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps({k: v for k, v in picked.items() if k not in ("metric", "condition", "view")}, sort_keys=True)


@dataclass(frozen=True)
class Row:
    """One line of a table. `cells` and `paper` have an entry per column; a cell is None where nothing is run."""

    label: str
    third_party: str
    paper: tuple[float | None, ...]
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """A table of a paper."""

    name: str
    title: str
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def cells(self) -> list[Cell]:
        """All that are measured."""
        return [cell for row in self.rows for cell in row.cells if cell is not None]

    def datasets(self) -> list[str]:
        """Those that its cells need."""
        return sorted({cell.dataset for cell in self.cells() if cell.dataset})

    def restricted(self, part: str) -> Table:
        """Only the rows whose labels contain this, in any case.

        Raises:
            OptionError: there is none.
        """
        rows = tuple(row for row in self.rows if part.lower() in row.label.lower())
        if not rows:
            labels = ", ".join(row.label for row in self.rows)
            raise OptionError(f"no row of {self.name} is called so", where="--rows", got=part, expected=labels)
        return Table(self.name, self.title, self.notes, self.columns, rows)


def table_names() -> list[str]:
    """All tables: CarGait's, then GaitMPL's in the order of the Roman numerals, figures last."""
    numerals = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")

    def place(name: str) -> tuple[str, bool, int, str]:
        paper, number = name.split("-", 1)
        return paper, number not in numerals, numerals.index(number) if number in numerals else 0, number

    return sorted((each.stem for each in FOLDER.glob("*.yaml")), key=place)


def read_table(name: str) -> Table:
    """The table of that name.

    Raises:
        OptionError: there is none, or its file is not as described above.
    """
    if name not in table_names():
        raise OptionError("no such table", where="TABLE", got=repr(name), expected=", ".join(table_names()))
    document = read_document(FOLDER / f"{name}.yaml")
    columns: Mapping[str, Mapping[str, Any]] = document["columns"]
    rows = []
    for label, described in document["rows"].items():
        own = dict(described)
        paper = own.pop("paper", None)
        numbers = tuple([None] * len(columns) if paper is None else paper)
        third_party = own.pop("third_party", "")
        if len(numbers) != len(columns):
            raise OptionError("numbers and columns differ", where=f"{name}: {label}", got=len(numbers))
        cells = (
            None if third_party else _cell({**document.get("common", {}), **column, **own}, paper is None, number)
            for number, column in zip(numbers, columns.values(), strict=True)
        )
        rows.append(Row(str(label), third_party, numbers, tuple(cells)))
    return Table(name, document["title"], tuple(document.get("notes", ())), tuple(map(str, columns)), tuple(rows))


def _cell(described: Mapping[str, Any], a_figure: bool, number: float | None) -> Cell | None:
    cell = Cell(**described)
    # Times are of this machine anyway; everything else is run for the sake of the comparison.
    return cell if a_figure or number is not None or cell.metric == MILLISECONDS else None
