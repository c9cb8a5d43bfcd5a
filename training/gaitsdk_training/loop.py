"""The loop that every training goes through: steps, and between them logging, validation, checkpoints and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gaitsdk_training.checkpoints import Run
from gaitsdk_training.interruption import StopRequest, TrainingStopped
from gaitsdk_training.schedule import Budget

#: Called after each step as progress(share of the run 0..1, what the log would say).
Progress = Callable[[float, dict[str, Any]], None]


class Intervals(Protocol):
    """What of a configuration decides when something happens, in steps."""

    @property
    def log_every(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class Training(Protocol):
    """One training: `step` counts what `one_step` did, `validated` is the step of the newest validation."""

    @property
    def config(self) -> Intervals: ...

    run: Run
    budget: Budget
    step: int
    validated: int

    def one_step(self, done: float) -> dict[str, Any]:
        """One optimiser step at this share of the run; gives what the log would say."""
        ...

    def validate(self) -> dict[str, Any]:
        """Measures, and keeps the weights where they are the best so far."""
        ...

    def checkpoint(self) -> None: ...


def run_to_the_end(training: Training, progress: Progress | None, stop: StopRequest) -> None:
    """Steps until the budget is spent, from wherever the training stands.

    Raises:
        TrainingStopped: Ctrl-C was pressed; a checkpoint has been written.
    """
    config = training.config
    while (done := training.budget.progress(training.step)) < 1.0:
        report = training.one_step(done)
        if training.step % config.log_every == 0:
            training.run.log(**report)
        if training.step % config.validate_every == 0:
            report |= training.validate()
        if training.step % config.checkpoint_every == 0:
            training.checkpoint()
        if progress is not None:
            progress(training.budget.progress(training.step), report)
        if stop.requested:
            training.checkpoint()
            raise TrainingStopped(training.step, training.run.path)
    if training.validated != training.step:
        training.validate()
    training.checkpoint()
