"""Measures the cells of a table: trains what they need, evaluates, times."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gaitsdk.errors import GaitError
from gaitsdk.rerankers import create as create_reranker
from gaitsdk_training.evaluation import evaluate
from tables.datasets import NotThere
from tables.specification import MILLISECONDS, Cell, Table
from tables.timing import milliseconds
from tables.training import Trainer

#: What became of a cell.
MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
TRAINED = ("cargait", "classifier")


@dataclass(frozen=True)
class Outcome:
    """Of one cell: what became of it, its number with each seed, the minutes of training behind them, or why not."""

    status: str
    by_seed: tuple[float, ...] = ()
    minutes: float = 0.0
    why: str = ""

    @property
    def ours(self) -> float | None:
        """The mean over the seeds."""
        return statistics.mean(self.by_seed) if self.by_seed else None


@dataclass
class Measurer:
    """Measures cells; cells of the same training and evaluation share it.

    Args:
        trainer: what trains.
        seeds: how often everything is trained, from seed 0 on.
        scope: of the re-rankers without weights, "list" or "full".
    """

    trainer: Trainer
    seeds: int = 1
    scope: str = "list"
    _found: dict[tuple[str, int], tuple[dict[str, float], float]] = field(default_factory=dict)

    def table(self, table: Table) -> Iterator[tuple[int, int, Outcome]]:
        """Row, column and outcome of every cell that is to be measured; cells of one backbone together."""
        todo = [
            (cell, row, column)
            for row, line in enumerate(table.rows)
            for column, cell in enumerate(line.cells)
            if cell is not None
        ]
        first: dict[tuple[str, str, str, int], int] = {}
        for place, (cell, _, _) in enumerate(todo):
            first.setdefault(_network(cell), place)
        for cell, row, column in sorted(todo, key=lambda each: first[_network(each[0])]):
            yield row, column, self.measure(cell)

    def measure(self, cell: Cell) -> Outcome:
        """One number, by every seed."""
        values, minutes = [], 0.0
        try:
            if cell.metric == MILLISECONDS:
                return Outcome(MEASURED, (milliseconds(cell.reranker, cell.device, self.trainer.tiny),))
            for seed in range(self.seeds):
                figures, taken = self._figures(cell, seed)
                value = cell.figure(figures)
                if value is None:
                    return Outcome(NOT_RUN, why=f"the data have no {cell.condition} {cell.view}".rstrip())
                values.append(value)
                minutes += taken
        except NotThere as missing:
            return Outcome(NOT_RUN, why=str(missing))
        except GaitError as error:
            return Outcome(FAILED, why=str(error))
        return Outcome(MEASURED, tuple(round(each, 4) for each in values), round(minutes, 2))

    def _figures(self, cell: Cell, seed: int) -> tuple[dict[str, float], float]:
        key = cell.run(), seed
        if key not in self._found:
            self._found[key] = self._evaluated(cell, seed)
        return self._found[key]

    def _evaluated(self, cell: Cell, seed: int) -> tuple[dict[str, float], float]:
        trainer = self.trainer
        probes = trainer.data.probe_set(cell.dataset)
        trained = trainer.backbone(cell, seed)
        minutes = trained.minutes
        reranker: Any = None
        if cell.reranker in TRAINED:
            reranker, more = trainer.reranker(cell, seed)
            minutes += more
        elif cell.reranker != "none":
            reranker = create_reranker(cell.reranker, scope=self.scope)
        features, test = trainer.features(cell, seed, "test"), trainer.part(cell, "test", trained.model)
        update = trainer.progress(f"ranking {cell.dataset}, {cell.reranker}")
        figures = evaluate(
            features, test.identities, test.types, test.views, cell.dataset, reranker, cell.k, probes, progress=update
        )
        return figures, minutes


def _network(cell: Cell) -> tuple[str, str, str, int]:
    return cell.dataset, cell.backbone, repr(cell.training), cell.more_steps


def machine() -> str:
    """This machine, in a line, and how busy it is."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}{gpu}, load {os.getloadavg()[0]:.0f}"
    )
