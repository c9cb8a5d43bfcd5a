"""Reads the silhouettes out of a .npz archive; nothing in it is executed."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import DatasetError
from gaitsdk.safe_pickle import MAX_BYTES


def read_archive(path: Path, max_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """The only array of a .npz archive or, of several, the one with "sil" in its name ("aligned", of several of those).

    Args:
        path: written by numpy.savez or numpy.savez_compressed.
        max_bytes: arrays that unpack to more are refused unread.

    Returns:
        The array as it is stored.

    Raises:
        DatasetError: unreadable, damaged, no array, objects, too large, or which array holds the silhouettes is not
            clear.
    """
    (array,) = read_arrays(path, lambda names: [_silhouettes(path, names)], max_bytes).values()
    return array


def read_arrays(
    path: Path, choose: Callable[[list[str]], Sequence[str]], max_bytes: int = MAX_BYTES
) -> dict[str, NDArray[Any]]:
    """Arrays of a .npz archive by name: those that `choose` picks of all names; args and raises as `read_archive`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):  # numpy.load goes by the contents, whatever the name
            raise _unusable(path, "one bare array", "rename it to .npy")
        with archive:
            names = choose(archive.files)
            for name in names:
                size = _unpacked(archive.zip, name)
                if size > max_bytes:
                    raise _unusable(path, f"{name} unpacks to {size} bytes, of at most {max_bytes}", "cut the sequence")
            return {name: archive[name] for name in names}
    except (OSError, ValueError, LookupError, EOFError, ArithmeticError, MemoryError) as error:
        raise _unusable(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, SyntaxError, TypeError) as error:
        raise _unusable(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _silhouettes(path: Path, names: list[str]) -> str:
    named = [name for name in names if "sil" in name.lower()]
    aligned = [name for name in named if "aligned" in name.lower()]
    for candidates in (names, named, aligned):
        if len(candidates) == 1:
            return candidates[0]
    got = ", ".join(sorted(names)[:8]) or "no array"
    raise _unusable(path, got, "leave one array in it, or name that of the silhouettes 'silhouettes'")


def _unpacked(archive: zipfile.ZipFile, name: str) -> int:
    """Bytes of the array, as the archive's directory states them; reading stops there whatever follows."""
    member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    return archive.getinfo(member).file_size


def _unusable(path: Path, got: str, fix: str = "write the file again") -> DatasetError:
    return DatasetError(
        "the .npz file cannot be used",
        where=str(path),
        got=got,
        expected="an archive of one array of numbers, written by numpy.savez",
        fix=fix,
    )
