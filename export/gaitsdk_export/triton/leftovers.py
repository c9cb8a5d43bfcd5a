"""What a server keeps outside its own process bears the number of the process that started it, so that the next start
can remove what one that was killed left behind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from gaitsdk.errors import ServerError

_OURS = re.compile(r"gaitsdk-(?:models|triton|shm)-(\d+)-")
_SHARED_MEMORY = Path("/dev/shm")


def prefix(kind: str) -> str:
    """Start of the name of what this process owns; `kind` is "models", "triton" or "shm"."""
    return f"gaitsdk-{kind}-{os.getpid()}-"


def make_folder(kind: str) -> Path:
    """A new temporary folder of this process. ServerError where none can be made."""
    try:
        return Path(tempfile.mkdtemp(prefix=prefix(kind)))
    except OSError as error:
        raise ServerError(
            "no temporary folder can be made", got=str(error), fix="set TMPDIR to a folder with room to write"
        ) from error


def remove_leftovers() -> None:
    """Removes this user's temporary folders and shared memory whose owner is dead."""
    for place in (Path(tempfile.gettempdir()), _SHARED_MEMORY):
        for path in place.glob("gaitsdk-*"):
            owner = _OURS.match(path.name)
            if owner and not Path("/proc", owner[1]).exists():
                _remove(path)


def _remove(path: Path) -> None:
    try:
        if path.lstat().st_uid != os.getuid():
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:  # somebody else was faster
        return
