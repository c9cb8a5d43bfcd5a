"""Features on disk: one .npy file that grows under another name, and a record of how far it is.

NAME.npy           float32 [n, s, d], there when it is complete
.NAME.npy.part     the same, of full length, its first rows written
NAME.npy.json      what the features are of, and how many rows are written

The rows are written and flushed before the record says so, and the record is replaced in one step. So after kill -9 or
a power cut the rows that it counts are there, and the rest is written again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gaitsdk.errors import DatasetError
from gaitsdk.file_lock import writing

logger = logging.getLogger(__name__)

Features = NDArray[np.float32]
#: Between two records, in seconds: what an interruption costs at most.
RECORD_EVERY = 1.0


class FeatureFile:
    """A .npy file of features that is written row after row and goes on where it stopped; a context manager.

    While it is open no other process writes it: a second one waits, and then finds it complete.

    Args:
        path: `NAME.npy`; its folder is made.
        shape: (n, s, d).
        source: what the features are of, JSON-able. A file of something else is built anew.

    Attributes:
        done: rows that are written.

    Raises:
        DatasetError: the path is that of another file, or it cannot be written (a full disk).
    """

    def __init__(self, path: str | os.PathLike[str], shape: tuple[int, int, int], source: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.shape = shape
        self.done = 0
        self._source: dict[str, Any] = json.loads(json.dumps({**source, "shape": list(shape)}))
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._record = self.path.with_name(f"{self.path.name}.json")
        self._stack = contextlib.ExitStack()
        self._file: IO[bytes] | None = None
        self._start, self._recorded = 0, 0.0

    def __enter__(self) -> FeatureFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(writing(self.path))
            self._open()
        except OSError as error:
            self._close()
            raise self._unwritable(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def complete(self) -> bool:
        """Whether all rows are written."""
        return self.done == self.shape[0]

    def write(self, rows: Features) -> None:
        """Appends [m, s, d].

        Raises:
            DatasetError: the disk is full, or gone.
        """
        try:
            self._write(np.ascontiguousarray(rows, "<f4"))
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self) -> Features:
        """All rows, memory-mapped. What is written to the array stays in memory (copy on write)."""
        features: Features = np.load(self.path, mmap_mode="c", allow_pickle=False)
        return features

    def _close(self) -> None:
        if self._file is not None:
            # On a full disk the rest of the buffer fails again here; the record does not count it.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        self._stack.close()

    def _open(self) -> None:
        recorded = self._read_record()
        if self.path.exists() and recorded is None:
            raise DatasetError(
                "is something else than a cache of features",
                where=str(self.path),
                got=f"a file without {self._record.name}",
                fix="choose another name, or delete it",
            )
        if recorded is not None and recorded.get("of") == self._source:
            self.done = recorded["done"]
            if self._take():
                return
            if self.done:
                logger.warning("building the features again, for the file is damaged: %s", self.path)
        elif self.path.exists():
            logger.info("building the features again, for they are of another model or other data: %s", self.path)
        self._begin()

    def _take(self) -> bool:
        """Goes on with what is there; False where it is not what the record says."""
        there = self._part if self._part.exists() else self.path
        try:
            whole = np.load(there, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        if whole.shape != self.shape or whole.dtype != np.dtype("<f4"):
            return False
        if there is self.path:
            return self.complete
        self._file = there.open("r+b")
        self._start = int(whole.offset)
        if self.complete:
            self._finish()
        return True

    def _begin(self) -> None:
        # The old file goes first: a file under the final name is always the one that the record speaks of. Then the
        # record, so that it never counts rows of the new file that are not written.
        self.path.unlink(missing_ok=True)
        self.done = 0
        self._write_record()
        self._file = self._part.open("w+b")
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        cast(Any, npy).write_array_header_1_0(self._file, header)  # NumPy has no type for it
        self._start = self._file.tell()
        self._file.truncate(self._start + 4 * int(np.prod(self.shape)))

    def _write(self, rows: Features) -> None:
        if self._file is None or rows.shape[1:] != self.shape[1:] or self.done + len(rows) > self.shape[0]:
            raise DatasetError(
                "these rows do not fit the file",
                where=str(self.path),
                got=f"{list(rows.shape)} after {self.done} rows",
                expected=f"{list(self.shape)} in all",
            )
        # Written, not mapped: on a full disk a mapped page ends the process, a write says so.
        self._file.seek(self._start + self.done * rows[:1].nbytes)
        self._file.write(rows.data)
        self.done += len(rows)
        if self.complete or time.monotonic() - self._recorded >= RECORD_EVERY:
            self._write_record()
        if self.complete:
            self._finish()

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        os.replace(self._part, self.path)

    def _write_record(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        temporary = self._record.with_name(f".{self._record.name}.tmp")
        with temporary.open("w") as file:
            json.dump({"of": self._source, "done": self.done}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._record)
        self._recorded = time.monotonic()

    def _read_record(self) -> dict[str, Any] | None:
        try:
            document = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return None
        known = isinstance(document, dict) and "of" in document and isinstance(document.get("done"), int)
        return document if known else None

    def _unwritable(self, error: OSError) -> DatasetError:
        return DatasetError(
            "the features cannot be written",
            where=str(self.path),
            got=error.strerror or str(error),
            fix="free some space (what is written stays), or choose another folder"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose another folder, one that may be written to",
        )
