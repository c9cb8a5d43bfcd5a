"""The SQLite side of a gallery: creating and opening the file safely, transactions, and errors in our own terms.

The file is in WAL mode with `synchronous=FULL`: a commit is on disk when it returns, readers never wait for writers.
One connection reads and one writes, each under its lock, so that searches do not queue behind an enrolment's fsync.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from gaitsdk.errors import GalleryCorruptError, GalleryError, GalleryLockedError

_logger = logging.getLogger(__name__)

APPLICATION_ID = 0x47414954  # "GAIT"
FORMAT_VERSION = 1
MEMORY = ":memory:"

#: Identity and metadata stand before the features: reading them never touches a blob's overflow pages.
_TABLES = """
CREATE TABLE header (id INTEGER PRIMARY KEY CHECK (id = 1), document TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, last_id INTEGER NOT NULL,
    count INTEGER NOT NULL, digest INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE identities (identity_id INTEGER PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL UNIQUE,
    crc INTEGER NOT NULL);
CREATE TABLE entries (entry_id INTEGER PRIMARY KEY, identity_id INTEGER NOT NULL REFERENCES identities (identity_id),
    metadata TEXT NOT NULL, head_crc INTEGER NOT NULL, features_crc INTEGER NOT NULL, features BLOB NOT NULL);
CREATE INDEX entries_by_identity ON entries (identity_id);
CREATE TABLE tombstones (entry_id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE INDEX tombstones_by_sequence ON tombstones (sequence);
"""


class Database:
    """Connections to one gallery's file, which must exist (see `create`).

    Args:
        location: its path.
        read_only: refuse to write.
        timeout: seconds to wait for another writer.

    Raises:
        GalleryCorruptError, GalleryError: as in `open_gallery`.
    """

    def __init__(self, location: str, *, read_only: bool, timeout: float) -> None:
        self._setup(location, read_only)
        self._timeout = timeout
        with translated(location):
            self._reader = self._open_reader()
            self._writer = self._reader if read_only else _connect(_uri(location, "rw"), timeout)

    @classmethod
    def in_memory(cls, document: str, crc: int, empty_state_crc: int) -> Database:
        """A new gallery that is gone when closed. One connection serves: another would see another database."""
        database = cls.__new__(cls)
        database._setup(MEMORY, False)
        database._write_lock = database._read_lock
        with translated(MEMORY):
            database._reader = database._writer = _connect(MEMORY, 0.0)
            initialise(database._reader, document, crc, empty_state_crc)
        return database

    def _setup(self, location: str, read_only: bool) -> None:
        self.location = location
        self.read_only = read_only
        self._pid = os.getpid()
        self._closed = False
        self._read_lock = threading.RLock()
        self._write_lock = threading.RLock()
        # Size and time of a file that nobody can be writing, see _open_reader.
        self._frozen: tuple[int, int] | None = None

    def _open_reader(self) -> sqlite3.Connection:
        try:
            return _checked(_uri(self.location, "ro" if self.read_only else "rw"), self.location, self._timeout)
        except sqlite3.OperationalError as error:
            # WAL needs a writable folder, unless nobody is writing: then the file itself is all there is.
            refused = "readonly" in str(error) or "unable to open" in str(error)
            if not (self.read_only and refused) or _journal_size(self.location):
                raise
        self._frozen = self._stamp()
        return _checked(_uri(self.location, "ro") + "&immutable=1", self.location, self._timeout)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent state; several may be asked for by one thread."""
        with self._read_lock, translated(self.location):
            self._check_usable()
            if self._reader.in_transaction:
                yield self._reader
                return
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block ends, undone where it raises."""
        if self.read_only:
            raise GalleryError("opened read-only", where=self.location, fix="open it with read_only=False")
        with self._write_lock, translated(self.location):
            self._check_usable()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # A full disk rolls back by itself; then there is nothing left to undo.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def version(self) -> int:
        """Changes whenever somebody, here or in another process, has committed."""
        with self._read_lock, translated(self.location):
            self._check_usable()
            if self.location == MEMORY:
                return self._reader.total_changes
            if self._frozen is not None and (self._frozen != self._stamp() or _journal_size(self.location)):
                self._frozen = None
                self._reader.close()
                self._reader = self._writer = self._open_reader()
                return -self._stamp()[0]
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def forget(self) -> None:
        """Empties the journal, which still holds the bytes of what was deleted (in the file they are overwritten)."""
        if self.location == MEMORY:
            return
        with self._write_lock, translated(self.location):
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            _logger.warning("%s: a reader delays emptying the journal of deleted data; closing does it", self.location)

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            self._writer.close()
            self._reader.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise GalleryError("closed already", where=self.location, fix="open it again")
        if self._pid != os.getpid():
            # SQLite's locks do not survive a fork: sharing the connection could damage the file.
            raise GalleryError("opened before a fork", where=self.location, fix="open it in the process that uses it")

    def _stamp(self) -> tuple[int, int]:
        status = os.stat(self.location)
        return status.st_mtime_ns, status.st_size


def initialise(connection: sqlite3.Connection, document: str, crc: int, empty_state_crc: int) -> None:
    """Writes an empty gallery."""
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    connection.execute("BEGIN")
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO header VALUES (1, ?, ?)", (document, crc))
    connection.execute("INSERT INTO state VALUES (1, 0, 0, 0, 0, ?)", (empty_state_crc,))
    connection.execute("COMMIT")


def create(location: str, document: str, crc: int, empty_state_crc: int) -> None:
    """Creates the file, whole or not at all: a crash leaves no half-made gallery under its name. Does nothing where
    another process was faster."""
    path = Path(location)
    if Path(location + "-wal").exists() and not path.exists():
        raise GalleryCorruptError(
            "a gallery's journal is there without the gallery",
            where=f"{location}-wal",
            fix="restore the gallery's file beside it, or delete the journal to begin anew",
        )
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    except OSError as error:
        raise GalleryError(f"cannot be created: {error.strerror}", where=location, fix="choose a folder") from error
    os.close(handle)
    try:
        with translated(location):
            with closing(_connect(_uri(draft, "rw"), 5.0)) as connection:
                initialise(connection, document, crc, empty_state_crc)
        try:
            os.link(draft, location)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(draft, location)
        _sync_folder(path.parent)
    finally:
        Path(draft).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a new name survive a power cut; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _journal_size(location: str) -> int:
    try:
        return os.stat(location + "-wal").st_size
    except FileNotFoundError:
        return 0


def _uri(location: str, mode: str) -> str:
    return f"file:{quote(os.path.abspath(location))}?mode={mode}"


def _connect(uri: str, timeout: float) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=uri != MEMORY, timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _checked(uri: str, location: str, timeout: float) -> sqlite3.Connection:
    connection = _connect(uri, timeout)
    try:
        _check_format(connection, location)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_format(connection: sqlite3.Connection, location: str) -> None:
    # An empty file is a valid, empty database to SQLite; to us it is a gallery that lost everything.
    if not os.path.getsize(location):
        raise GalleryCorruptError(
            "an empty file, no gallery", where=location, fix="restore it from a backup, or delete it to begin anew"
        )
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise GalleryCorruptError("not a gallery of gaitsdk", where=location, fix="give the path of a gallery")
    if version != FORMAT_VERSION:
        raise GalleryCorruptError(
            "another format version",
            where=location,
            got=version,
            expected=str(FORMAT_VERSION),
            fix="use the gaitsdk that wrote it" if version > FORMAT_VERSION else "enroll anew",
        )
    # SQLite reads a half page as if zeros followed. Only a checkpoint leaves one, and then the journal has it whole.
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    if os.path.getsize(location) % page and not _journal_size(location):
        raise GalleryCorruptError("the file is cut short", where=location, fix="restore it from a backup")


@contextmanager
def translated(location: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise GalleryLockedError(
                "another process is writing for longer than the time-out", where=location, fix="try again"
            ) from error
        for part, fix in _REFUSALS.items():
            if part in text:
                raise GalleryError(f"the store refuses: {text}", where=location, fix=fix) from error
        raise GalleryCorruptError(
            f"the file is no gallery, or damaged ({text})", where=location, fix="restore it from a backup"
        ) from error


_REFUSALS = {
    "readonly": "open it with read_only=True, or get permission to write the file and its folder",
    "unable to open": "check the path and the permissions of the file and its folder",
    "disk is full": "free some disk space; nothing of this call was stored",
    "disk I/O error": "check the disk; nothing of this call was stored",
    "out of memory": "free some memory; nothing of this call was stored",
    "Cannot operate on a closed database": "open the gallery again",
}
