"""The embedded gallery: one SQLite file is the truth, a search index in memory follows it.

Every commit raises a sequence number. A search first asks SQLite whether anybody committed; if so the index takes in
the entries and deletions since the sequence that it has, and becomes a new immutable snapshot. The state row carries
the number and the checksum sum of all entries, so that a lost row is noticed as well as a damaged one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import Features, check_features
from gaitsdk.errors import (
    EmptyGalleryError,
    GalleryCorruptError,
    InputError,
    OptionError,
    UnknownIdentityError,
)
from gaitsdk.gallery import database as db
from gaitsdk.gallery import entries as rules
from gaitsdk.gallery.header import Header, Wanted, prepare
from gaitsdk.gallery.index import Snapshot
from gaitsdk.gallery.protocol import Gallery

#: Ids in one SQL statement (SQLite's own limit was 999 for long), rows fetched at a time while loading.
_IDS, _ROWS = 500, 256
_MARKS = "SELECT entry_id, identity_id, head_crc + features_crc FROM entries"
_T = TypeVar("_T")


@dataclass(frozen=True)
class _State:
    sequence: int
    last_id: int
    count: int
    digest: int

    def crc(self) -> int:
        return rules.state_crc(self.sequence, self.last_id, self.count, self.digest)


class SqliteGallery(Gallery):
    """A gallery in one SQLite file (beside it, while open, SQLite's `-wal` and `-shm`), or in memory.

    Arguments and errors as in `gaitsdk.gallery.open_gallery`. Not for network file systems: WAL needs shared memory.
    """

    def __init__(
        self,
        location: str = db.MEMORY,
        *,
        fingerprint: str | None = None,
        strips: int | None = None,
        dims: int | None = None,
        metric: str | None = None,
        read_only: bool = False,
        create: bool = True,
        timeout: float = 5.0,
    ) -> None:
        wanted = Wanted(fingerprint, strips, dims, metric)
        wanted.check()
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < float("inf"):
            raise OptionError("not a time-out", where="timeout", got=repr(timeout), expected="seconds >= 0")
        self.location = location
        if location == db.MEMORY:
            if read_only:
                raise OptionError("a gallery in memory cannot be read-only", where="read_only", fix="give a path")
            self._database = db.Database.in_memory(*wanted.new_header(location).rows())
        else:
            prepare(location, wanted, create=create and not read_only)
            self._database = db.Database(location, read_only=read_only, timeout=timeout)
        try:
            self._header = self._read_header()
            wanted.match(self._header, location)
            self._state()
        except BaseException:
            self._database.close()
            raise
        self._refreshing = threading.Lock()
        self._version: int | None = None
        self._sequence = 0
        self._snapshot = Snapshot(self.strips, self.dims, self.metric)

    @property
    def fingerprint(self) -> str:
        return self._header.fingerprint

    @property
    def strips(self) -> int:
        return self._header.strips

    @property
    def dims(self) -> int:
        return self._header.dims

    @property
    def metric(self) -> str:
        return self._header.metric

    @property
    def count(self) -> int:
        return self._state().count

    @property
    def sequence(self) -> int:
        return self._state().sequence

    def add(self, identity: str, features: ArrayLike, **metadata: Any) -> int:
        checked = check_features(features, "features", (self.strips, self.dims))
        rules.check_identity(identity)
        return self.add_many([identity], checked[None], [metadata])[0]

    def add_many(
        self,
        identities: Sequence[str],
        features: ArrayLike,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> list[int]:
        maps = check_features(features, "features", (None, self.strips, self.dims))
        names = rules.check_identities(identities, len(maps))
        documents = _encode_all(metadata, len(maps))
        if not len(maps):
            return []
        with self._database.writing() as connection:
            state = self._read_state(connection)
            known: dict[str, int] = {}
            rows, digest = [], state.digest
            for entry_id, (name, document, one) in enumerate(
                zip(names, documents, maps, strict=True), start=state.last_id + 1
            ):
                key = rules.identity_key(name)
                if key not in known:
                    known[key] = _identity_id(connection, name, key)
                blob = one.astype("<f4", copy=False).tobytes()
                head, body = rules.head_crc(entry_id, known[key], document), rules.features_crc(blob)
                rows.append((entry_id, known[key], document, head, body, blob))
                digest += head + body
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
            last = state.last_id + len(rows)
            _write_state(connection, _State(state.sequence + 1, last, state.count + len(rows), digest))
        return [row[0] for row in rows]

    def delete(self, identity: str | None = None, entry_ids: ArrayLike | None = None) -> int:
        if (identity is None) == (entry_ids is None):
            raise OptionError("give exactly one of identity and entry_ids", where="delete")
        with self._database.writing() as connection:
            if identity is not None:
                key = rules.identity_key(rules.check_identity(identity))
                condition = "WHERE identity_id = (SELECT identity_id FROM identities WHERE key = ?)"
                found = connection.execute(f"{_MARKS} {condition}", (key,)).fetchall()
            else:
                wanted = rules.check_ids(entry_ids if entry_ids is not None else [])
                found = _select(connection, _MARKS, wanted)
            if found:
                self._erase(connection, found)
        if found:
            self._database.forget()
        return len(found)

    def _erase(self, connection: sqlite3.Connection, found: list[tuple[Any, ...]]) -> None:
        state = self._read_state(connection)
        sequence = state.sequence + 1
        digest = state.digest - sum(mark for _, _, mark in found)
        connection.executemany("DELETE FROM entries WHERE entry_id = ?", [(entry,) for entry, _, _ in found])
        connection.executemany("INSERT INTO tombstones VALUES (?, ?)", [(entry, sequence) for entry, _, _ in found])
        connection.executemany(
            "DELETE FROM identities WHERE identity_id = ?1 AND NOT EXISTS "
            "(SELECT 1 FROM entries WHERE identity_id = ?1)",
            [(identity_id,) for identity_id in {row[1] for row in found}],
        )
        _write_state(connection, _State(sequence, state.last_id, state.count - len(found), digest))

    def search(self, features: ArrayLike, k: int) -> tuple[NDArray[np.int64], Features]:
        length = rules.check_k(k)
        probes = check_features(features, "features", (None, self.strips, self.dims))
        snapshot = self._fresh()
        if not snapshot.count:
            raise EmptyGalleryError("nobody is enrolled", where=self.location, fix="add at least one entry")
        return snapshot.search(probes, min(length, snapshot.count))

    def get(self, entry_ids: ArrayLike) -> Features:
        def decode(row: tuple[Any, ...]) -> Features:
            return self._features(row[0], row[1], row[2])

        maps = self._lookup("SELECT entry_id, features_crc, features FROM entries", entry_ids, decode)
        return np.stack(maps) if maps else np.empty((0, self.strips, self.dims), np.float32)

    def identities(self) -> list[str]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT identity_id, name, crc, key FROM identities").fetchall()
        names = [self._name(*row[:3]) for row in rows]
        if [rules.identity_key(name) for name in names] != [row[3] for row in rows]:
            raise self._damage("an identity's key is damaged", f"{len(rows)} identities")
        return sorted(names)

    def identity_of(self, entry_ids: ArrayLike) -> list[str]:
        def decode(row: tuple[Any, ...]) -> str:
            self._check_head(*row[:4])
            return self._name(row[1], row[4], row[5])

        sql = (
            "SELECT entry_id, entries.identity_id, metadata, head_crc, name, identities.crc FROM entries "
            "LEFT JOIN identities USING (identity_id)"
        )
        return self._lookup(sql, entry_ids, decode)

    def metadata(self, entry_id: int) -> dict[str, Any]:
        def decode(row: tuple[Any, ...]) -> dict[str, Any]:
            return rules.decode_metadata(self._check_head(*row))

        return self._lookup("SELECT entry_id, identity_id, metadata, head_crc FROM entries", [entry_id], decode)[0]

    def close(self) -> None:
        self._database.close()

    def _fresh(self) -> Snapshot:
        """The newest snapshot, after taking in what was committed since the last one."""
        with self._refreshing:
            version = self._database.version()
            if version != self._version:
                with self._database.reading() as connection:
                    state = self._read_state(connection)
                    snapshot = self._caught_up(connection, state)
                # Published only when whole: after an error the next search begins from the old one again.
                self._snapshot, self._sequence, self._version = snapshot, state.sequence, version
            self._snapshot = self._snapshot.tidied()
            return self._snapshot

    def _caught_up(self, connection: sqlite3.Connection, state: _State) -> Snapshot:
        snapshot = self._snapshot
        if state.sequence == self._sequence and (state.count, state.digest) == (snapshot.count, snapshot.digest):
            return snapshot
        gone = connection.execute("SELECT entry_id FROM tombstones WHERE sequence > ?", (self._sequence,)).fetchall()
        snapshot = snapshot.remove(np.array([row[0] for row in gone], np.int64))
        for rows in _batches(
            connection.execute(
                "SELECT entry_id, identity_id, metadata, head_crc, features_crc, features FROM entries "
                "WHERE entry_id > ? ORDER BY entry_id",
                (snapshot.last_id,),
            )
        ):
            for row in rows:
                self._check_head(*row[:4])
            maps = np.stack([self._features(row[0], row[4], row[5]) for row in rows])
            marks = np.array([row[3] + row[4] for row in rows], np.int64)
            snapshot = snapshot.append(np.array([row[0] for row in rows], np.int64), marks, maps)
        if (snapshot.count, snapshot.digest) != (state.count, state.digest):
            raise self._damage("entries are missing", f"{snapshot.count} entries", f"{state.count}, checksums alike")
        return snapshot

    def _state(self) -> _State:
        with self._database.reading() as connection:
            return self._read_state(connection)

    def _read_state(self, connection: sqlite3.Connection) -> _State:
        row = connection.execute("SELECT sequence, last_id, count, digest, crc FROM state").fetchone()
        if row is None or not all(isinstance(value, int) for value in row) or _State(*row[:4]).crc() != row[4]:
            raise self._damage("the state row is damaged", row)
        return _State(*row[:4])

    def _read_header(self) -> Header:
        with self._database.reading() as connection:
            row = connection.execute("SELECT document, crc FROM header").fetchone()
        if row is None or not isinstance(row[0], str) or zlib.crc32(row[0].encode()) != row[1]:
            raise self._damage("the header is damaged", row)
        return Header(**json.loads(row[0]))

    def _lookup(self, sql: str, entry_ids: ArrayLike, decode: Callable[[tuple[Any, ...]], _T]) -> list[_T]:
        """One decoded row per id asked for, in that order."""
        wanted = rules.check_ids(entry_ids)
        with self._database.reading() as connection:
            found = {row[0]: decode(row) for row in _select(connection, sql, wanted)}
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise UnknownIdentityError(
                "no such entry",
                where=self.location,
                got=missing[:10],
                fix="it may have been deleted since: search again",
            )
        return [found[entry] for entry in wanted]

    def _features(self, entry_id: int, crc: object, blob: object) -> Features:
        size = 4 * self.strips * self.dims
        if not isinstance(blob, bytes) or len(blob) != size or rules.features_crc(blob) != crc:
            raise self._damage("the features of an entry are damaged", f"entry {entry_id}")
        return rules.decode_features(blob, self.strips, self.dims)

    def _check_head(self, entry_id: int, identity_id: object, metadata: object, crc: object) -> str:
        whole = isinstance(identity_id, int) and isinstance(metadata, str) and isinstance(crc, int)
        if not whole or rules.head_crc(entry_id, identity_id, metadata) != crc:  # type: ignore[arg-type]
            raise self._damage("an entry is damaged", f"entry {entry_id}")
        return str(metadata)

    def _name(self, identity_id: int, name: object, crc: object) -> str:
        if not isinstance(name, str) or rules.identity_crc(identity_id, name) != crc:
            raise self._damage("an identity is damaged or missing", f"identity number {identity_id}")
        return name

    def _damage(self, what: str, got: object, expected: str | None = None) -> GalleryCorruptError:
        return GalleryCorruptError(
            what, where=self.location, got=got, expected=expected, fix="restore the gallery from a backup"
        )


def _encode_all(metadata: Sequence[dict[str, Any]] | None, count: int) -> list[str]:
    if metadata is None:
        return ["{}"] * count
    if not isinstance(metadata, Sequence) or isinstance(metadata, (str, bytes)) or len(metadata) != count:
        raise InputError("not one dictionary per entry", where="metadata", got=repr(metadata)[:80], expected=f"{count}")
    return [rules.encode_metadata(one, f"metadata[{i}]") for i, one in enumerate(metadata)]


def _identity_id(connection: sqlite3.Connection, name: str, key: str) -> int:
    """Number of the identity, made where it is new; the first spelling stays."""
    row = connection.execute("SELECT identity_id FROM identities WHERE key = ?", (key,)).fetchone()
    if row is not None:
        return int(row[0])
    number = int(connection.execute("SELECT COALESCE(MAX(identity_id), 0) + 1 FROM identities").fetchone()[0])
    connection.execute(
        "INSERT INTO identities VALUES (?, ?, ?, ?)", (number, name, key, rules.identity_crc(number, name))
    )
    return number


def _write_state(connection: sqlite3.Connection, state: _State) -> None:
    connection.execute(
        "UPDATE state SET sequence = ?, last_id = ?, count = ?, digest = ?, crc = ?",
        (state.sequence, state.last_id, state.count, state.digest, state.crc()),
    )


def _select(connection: sqlite3.Connection, sql: str, entry_ids: list[int]) -> list[tuple[Any, ...]]:
    """Rows of these entries, each once, in the order of the ids."""
    unique, rows = sorted(set(entry_ids)), []
    for i in range(0, len(unique), _IDS):
        part = unique[i : i + _IDS]
        marks = ",".join("?" * len(part))
        rows += connection.execute(f"{sql} WHERE entry_id IN ({marks}) ORDER BY entry_id", part).fetchall()
    return rows


def _batches(cursor: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(_ROWS):
        yield rows
