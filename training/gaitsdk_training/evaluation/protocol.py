"""What a protocol is: it says from the names what is ranked where, and makes figures of who was found."""

from __future__ import annotations

from typing import Protocol as Interface

from gaitsdk_training.evaluation.cells import Cell
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.request import Names

Figures = dict[str, float | int]


class Protocol(Interface):
    """One of the official protocols."""

    @property
    def name(self) -> str:
        """What `evaluate` takes."""
        ...

    @property
    def dataset(self) -> str:
        """The public data set that it is of, as `gaitsdk_training.data.public_dataset` calls it."""
        ...

    @property
    def about(self) -> str:
        """How it ranks, in a few words for the head of a table."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Keys of its figures, best known first: "rank1", "mAP"."""
        ...

    def cells(self, names: Names) -> list[Cell]:
        """What is ranked.

        Raises:
            InputError: the names give no gallery or no probes.
        """
        ...

    def counted(self, names: Names, table: HitTable) -> HitTable:
        """The rows that enter the figures."""
        ...

    def figures(self, names: Names, table: HitTable, reranked: bool) -> Figures:
        """The flat figures of `evaluate` from all rows."""
        ...
