"""One process at a time does something; the others wait. The system frees the lock of a process that is killed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of a folder, or of a file that is made where it is missing and stays.

    Args:
        path: what is locked; it need not be what is written.
        waiting: called once if another process holds it.

    Raises:
        OSError: it cannot be opened or made.
    """
    import fcntl  # missing on Windows, where all that takes no lock works

    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Holds the lock of a file that is to be written: `.NAME.lock` beside it.

    Raises:
        OSError: the lock cannot be made in this folder.
    """
    lock = target.with_name(f".{target.name}.lock")
    with locked(lock, lambda: logger.info("waiting for another process that writes %s", target)):
        yield
