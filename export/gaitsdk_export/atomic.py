"""A file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appears_whole(target: Path) -> Iterator[Path]:
    """Yields a temporary name beside `target`; renames it on success, deletes it on any failure.

    What lay at `target` before is replaced on success only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays the last part: exporters and loaders look at it.
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
