"""The loop that every training goes through: steps, and between them logging, validation, checkpoints and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gaitsdk_training.checkpoints import Run
from gaitsdk_training.interruption import StopRequest, TrainingStopped
from gaitsdk_training.processes import Processes
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
    group: Processes
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

    Of several processes the first one logs, validates and writes; they take as many steps, and stop together.

    Raises:
        TrainingStopped: Ctrl-C was pressed, in any process; a checkpoint has been written.
        TrainingError: the run's folder cannot be written, or another process has ended.
    """
    group = training.group
    done, _ = group.agree(training.budget.progress(training.step), False)
    while done < 1.0:
        report = training.one_step(done)
        if group.leads:
            _record(training, report)
        if progress is not None:
            progress(training.budget.progress(training.step), report)
        done, stopped = group.agree(training.budget.progress(training.step), stop.requested)
        if stopped:
            if group.leads:
                training.checkpoint()
            group.wait()
            raise TrainingStopped(training.step, training.run.path)
    if group.leads:
        if training.validated != training.step:
            training.validate()
        training.checkpoint()
    group.wait()  # until everything is written, for all read the best weights


def _record(training: Training, report: dict[str, Any]) -> None:
    """After a step: log, validation and checkpoint where they are due."""
    config = training.config
    if training.step % config.log_every == 0:
        training.run.log(**report)
    if training.step % config.validate_every == 0:
        report |= training.validate()
    if training.step % config.checkpoint_every == 0:
        training.checkpoint()
