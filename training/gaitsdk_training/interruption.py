"""Ctrl-C during training: the step is finished, a checkpoint written, and the same command goes on from there."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class TrainingStopped(KeyboardInterrupt):
    """A run was stopped by Ctrl-C after its checkpoint was written. Calling the training again goes on.

    Attributes:
        step: of the checkpoint.
        path: the run's folder.
    """

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path
        super().__init__(f"stopped at step {step}; the checkpoint is in {path}")


class StopRequest:
    """Whether Ctrl-C was pressed."""

    requested = False


@contextmanager
def ctrl_c_requests_a_stop() -> Iterator[StopRequest]:
    """Inside, the first Ctrl-C only sets `requested`, so that no step is cut in half; the second interrupts at once.

    Outside the main thread, and where somebody else handles or ignores the signal, nothing is changed.
    """
    request = StopRequest()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield request
        return

    def stop(number: int, frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
