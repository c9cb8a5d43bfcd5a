"""What every gallery can do, wherever it keeps its entries."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import Features

_Self = TypeVar("_Self")


@runtime_checkable
class Gallery(Protocol):
    """Enrolled sequences: entry id -> identity, feature map `F [s, d]` float32, metadata.

    * An entry id is an int >= 1 that is never given twice, not even after deletion.
    * What `add`, `add_many` and `delete` did is durable when they return (":memory:" apart).
    * A search sees every entry whose adding returned before it began, in any process; it works on one state throughout.
    * All methods may be called from several threads.
    * Identities are compared in Unicode's NFC form; the spelling enrolled first is the one given back.
    """

    @classmethod
    def open(cls, path_or_uri: str | os.PathLike[str] = ":memory:", **options: Any) -> Gallery:
        """Opens or creates a gallery; options and errors as in `gaitsdk.gallery.open_gallery`."""
        from gaitsdk.gallery.stores import open_gallery  # the stores import this module

        return open_gallery(path_or_uri, **options)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Of the model whose features are kept."""
        ...

    @property
    @abstractmethod
    def strips(self) -> int:
        """s of `F [s, d]`."""
        ...

    @property
    @abstractmethod
    def dims(self) -> int:
        """d of `F [s, d]`."""
        ...

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the distance in `gaitsdk.distance`: "euclidean" or "cosine"."""
        ...

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of entries."""
        ...

    @property
    @abstractmethod
    def sequence(self) -> int:
        """Number of commits so far, over all processes: changes exactly when the content does."""
        ...

    @abstractmethod
    def add(self, identity: str, features: ArrayLike, **metadata: Any) -> int:
        """Enrols one sequence.

        Args:
            identity: 1 to 256 characters, not blank, no control characters.
            features: float32 `[s, d]`.
            metadata: anything that JSON can hold.

        Returns:
            The entry id.

        Raises:
            InputError: identity, features or metadata are unusable.
            GalleryLockedError: another process is writing for longer than the time-out.
            GalleryError: read-only, closed, or the disk refuses.
        """
        ...

    @abstractmethod
    def add_many(
        self,
        identities: Sequence[str],
        features: ArrayLike,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Enrols n sequences, all or none (one commit).

        Args:
            identities: n of them.
            features: float32 `[n, s, d]`.
            metadata: n dictionaries, or None.

        Returns:
            n entry ids, in order. Errors as in `add`.
        """
        ...

    @abstractmethod
    def delete(self, identity: str | None = None, entry_ids: ArrayLike | None = None) -> int:
        """Deletes all entries of an identity, or the given entries, for good: the bytes leave the store.

        Returns:
            Number of entries deleted; 0 where there is no such identity or entry.

        Raises:
            OptionError: not exactly one of the two arguments.
            InputError, GalleryLockedError, GalleryError: as in `add`.
        """
        ...

    @abstractmethod
    def search(self, features: ArrayLike, k: int) -> tuple[NDArray[np.int64], Features]:
        """The nearest entries of n probes: exactly those, ordered by distance, then by entry id.

        Args:
            features: float32 `[n, s, d]`.
            k: >= 1.

        Returns:
            Entry ids int64 `[n, min(k, count)]` and their distances, float32 of the same shape.

        Raises:
            EmptyGalleryError: nobody is enrolled.
            InputError: the probes are unusable.
            OptionError: k is no integer >= 1.
        """
        ...

    @abstractmethod
    def get(self, entry_ids: ArrayLike) -> Features:
        """Feature maps of m entries, float32 `[m, s, d]`, bit for bit as added; ids may repeat.

        Raises:
            UnknownIdentityError: there is no such entry (any more).
            InputError: not a list of integers.
        """
        ...

    @abstractmethod
    def identities(self) -> list[str]:
        """Everyone enrolled, sorted by code point."""
        ...

    @abstractmethod
    def identity_of(self, entry_ids: ArrayLike) -> list[str]:
        """Identities of m entries. Errors as in `get`."""
        ...

    @abstractmethod
    def metadata(self, entry_id: int) -> dict[str, Any]:
        """What was given to `add` with that entry. Errors as in `get`."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Gives files and memory back; may be called twice. Any other call afterwards raises `GalleryError`."""
        ...

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
