"""What is no finite number ends a run before it reaches the weights, and says in which batch it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from gaitsdk.errors import TrainingError
from gaitsdk_training.checkpoints import Run

#: Sequences that a message names; the log has all.
_NAMED = 8


def refuse(run: Run, step: int, what: str, sequences: Sequence[str], fix: str) -> NoReturn:
    """Writes the batch to the log and ends the run; weights and checkpoints stay as they were before this step.

    Args:
        run: for its log and its checkpoints.
        step: the one that would have been taken.
        what: "the loss is not finite", for example.
        sequences: names of those that are to blame, or of the whole batch.
        fix: what may help.

    Raises:
        TrainingError: always.
    """
    run.log(step=step, stopped=what, batch=list(sequences))
    kept = run.newest()
    left = "no checkpoint was written yet" if kept is None else f"{kept} is still good"
    more = "" if len(sequences) <= _NAMED else f" and {len(sequences) - _NAMED} more (all are in log.jsonl)"
    raise TrainingError(
        what, where=f"step {step}", got=f"a batch with {', '.join(sequences[:_NAMED])}{more}",
        expected="finite numbers", fix=f"{fix}; {left}",
    )  # fmt: skip
