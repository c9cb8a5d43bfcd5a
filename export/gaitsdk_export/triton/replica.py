"""Carries a gallery to servers on other machines: `python -m gaitsdk_export.triton.replica publish|follow FROM TO`.

A gallery is one SQLite file, which only processes of one machine may have open. So the machine that enrols publishes
copies of it, on any volume that others can read; the others follow: each takes new copies into a file of its own, where
the server that has it open finds them like any other commit.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from gaitsdk.errors import GaitError, GalleryError, ModelMismatchError

#: Seconds to wait for whoever writes.
BUSY = 30.0
#: How files are opened: what others may be writing, and what never changes any more (no locks, nothing beside it).
IN_USE, PUBLISHED = "mode=rw", "mode=ro&immutable=1"


def publish(source: Path, target: Path) -> bool:
    """Writes a consistent copy of a gallery that may be in use; `target` changes whole or not at all.

    Returns:
        Whether there was anything new.

    Raises:
        GalleryError: a file cannot be read or written, or is no gallery. ModelMismatchError: `target` is a copy of
            another model's gallery.
    """
    with closing(_open(source, IN_USE)) as live:
        if target.exists():
            with closing(_open(target, PUBLISHED)) as copy:
                if not _is_newer(live, copy, target):
                    return False
        _write(live, target)
    return True


def follow(source: Path, target: Path) -> bool:
    """Takes a published copy into a gallery of this machine, which may be in use; it is made where it is missing.

    Returns:
        Whether there was anything new.

    Raises:
        GalleryError, ModelMismatchError: as of `publish`; `target` is as it was.
    """
    with closing(_open(source, PUBLISHED)) as copy:
        if not target.exists():
            _write(copy, target)
            return True
        with closing(_open(target, IN_USE)) as live:
            if not _is_newer(copy, live, target):
                return False
            try:
                copy.backup(live)  # one commit: who searches meanwhile sees all of it or nothing
            except sqlite3.Error as error:
                raise GalleryError("cannot be brought up to date", where=str(target), got=str(error)) from error
    return True


def _write(gallery: sqlite3.Connection, target: Path) -> None:
    draft = ""
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        os.close(handle)
        with closing(sqlite3.connect(draft)) as copy:
            gallery.backup(copy)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, target)
    except (OSError, sqlite3.Error) as error:
        for left in Path(draft).parent.glob(f"{Path(draft).name}*") if draft else ():
            left.unlink(missing_ok=True)
        raise GalleryError("cannot be written", where=str(target), got=str(error)) from error


def _open(path: Path, how: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=BUSY)
        connection.execute("SELECT count(*) FROM state")
    except sqlite3.Error as error:
        raise GalleryError("not a gallery that can be read", where=str(path), got=str(error)) from error
    return connection


def _is_newer(ours: sqlite3.Connection, theirs: sqlite3.Connection, where: Path) -> bool:
    (model, state), (other, old) = _about(ours), _about(theirs)
    if model != other:
        raise ModelMismatchError("another model's gallery", where=str(where), fix="remove it, or name another file")
    if state[0] < old[0]:
        raise GalleryError(
            "newer than what it should be brought up to",
            where=str(where),
            got=f"commit {old[0]}",
            expected=f"at most {state[0]}",
            fix="where the gallery was restored from a backup: remove the copies and start their servers anew",
        )
    return state != old


def _about(connection: sqlite3.Connection) -> tuple[str, tuple[int, int]]:
    """The header, which names the model, and the last commit: its number and the checksum sum."""
    (document,) = connection.execute("SELECT document FROM header").fetchone()
    return document, connection.execute("SELECT sequence, digest FROM state").fetchone()


def main(arguments: list[str] | None = None) -> int:
    """The command: exit code 0 when done, 1 with the reason on standard error; with --every it goes on for ever."""
    parser = argparse.ArgumentParser(prog="python -m gaitsdk_export.triton.replica", description=__doc__)
    parser.add_argument("action", choices=("publish", "follow"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--every", type=float, metavar="SECONDS", help="again and again, also after errors")
    given = parser.parse_args(arguments)
    action = publish if given.action == "publish" else follow
    while True:
        code = 0
        try:
            if action(given.source, given.target):
                sys.stdout.write(f"{given.action}: {given.target} is up to date\n")
        except GaitError as error:
            sys.stderr.write(f"{error}\n")
            code = 1
        if given.every is None:
            return code
        sys.stdout.flush()
        time.sleep(given.every)


if __name__ == "__main__":
    sys.exit(main())
