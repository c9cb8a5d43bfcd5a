"""One process at a time writes a file; the others wait."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the lock of a file that is to be written, `.NAME.lock` beside it; the system frees that of a process that
    is killed.

    Raises:
        OSError: the lock cannot be made in this folder.
    """
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that writes %s", target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
