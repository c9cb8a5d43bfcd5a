"""Who was enrolled, identified or deleted, when and at whose request: a file of JSON lines that only grows.

Any number of processes append to it. A line is written whole or not at all, also when the disk is full, and a file that
was renamed (`logrotate`) is followed by a new one at the next line.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gaitsdk.errors import ServerError
from gaitsdk.gallery.entries import identity_key
from gaitsdk_export.triton.logs import now, shortened

#: The request's parameter that names who asks: Triton refuses parameters that begin with "triton_" from clients, and
#: sets this one from the header of that name, which the proxy in front has to set or to remove.
ACTOR = "triton_actor"


class Audit:
    """The audit of one process.

    Args:
        path: the file, made where it is missing (readable by its owner only); None = no audit, `write` does nothing.
        identities: "hash": people are named by `hashed`; "plain": by their names.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identities: str = "hash") -> None:
        self._path = None if path is None else Path(path)
        self._hash = identities == "hash"
        self._handle = -1

    @property
    def kept(self) -> bool:
        """Whether there is one."""
        return self._path is not None

    def write(self, lines: Iterable[Mapping[str, Any]], *, durable: bool = False) -> None:
        """Appends lines with the time; fields that are None are left out.

        Args:
            lines: what to write; `identity` is hashed here.
            durable: return when the disk has them.

        Raises:
            ServerError: the file cannot take them; it has none of them then.
        """
        if self._path is None:
            return
        text = "".join(f"{json.dumps(self._line(each))}\n" for each in lines).encode()
        try:
            self._follow(self._path)
            self._append(text)
            if durable:
                os.fsync(self._handle)
        except OSError as error:
            raise ServerError(
                "the audit cannot be written, and without it nothing is done",
                where=str(self._path),
                got=error.strerror,
                fix="make room or allow writing there, or choose another file: --audit FILE (GAITSDK_AUDIT)",
            ) from error

    def _line(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        line = {"time": now(), **fields}
        if self._hash and line.get("identity") is not None:
            line["identity"] = hashed(line["identity"])
        return shortened(line)

    def _append(self, text: bytes) -> None:
        fcntl.flock(self._handle, fcntl.LOCK_EX)  # so that half a line can be taken back before the next comes
        try:
            before = os.fstat(self._handle).st_size
            if os.write(self._handle, text) != len(text):
                os.ftruncate(self._handle, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _follow(self, path: Path) -> None:
        """Opens the file, or the new one where somebody renamed or removed it."""
        with suppress(FileNotFoundError):
            if self._handle >= 0 and os.path.samestat(os.fstat(self._handle), path.stat()):
                return
        self.close()
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the new file's name may not survive a power cut
        finally:
            os.close(folder)

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def hashed(identity: str) -> str:
    """What an audit with hashed identities calls a person: SHA-256 of the name in Unicode's NFC form, as hexadecimal.

    A pseudonym: whoever knows the name finds the person's lines, and a list of names can be tried."""
    return hashlib.sha256(identity_key(identity).encode(errors="surrogatepass")).hexdigest()
