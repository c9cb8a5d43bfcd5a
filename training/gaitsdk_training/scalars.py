"""The log's numbers for TensorBoard, in event files beside log.jsonl: `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaitsdk.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_tensorboard() -> None:
    """Raises MissingDependencyError where TensorBoard's package is not installed."""
    _writer_class()


class Scalars:
    """Event files of one part of a run.

    Args:
        folder: where they are written.
        step: of the checkpoint that the run goes on from; what was shown of later steps disappears.

    Raises:
        MissingDependencyError: TensorBoard's package is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = _writer_class()(str(folder), purge_step=step + 1 if step else None)

    def add(self, values: Mapping[str, Any]) -> None:
        """The numbers of one line of the log, which has a `step`; what is none is left out."""
        step = int(values["step"])
        for name, value in values.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Writes what has been added."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what has been added, and ends the file."""
        self._writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard's event files need the package tensorboard", where="tensorboard", got=str(error),
            fix="pip install tensorboard, or leave the option out: log.jsonl has the same numbers",
        ) from error  # fmt: skip
    return SummaryWriter
