"""The only place that reads pickles: a restricted reader that admits NumPy arrays of numbers and nothing else."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import DatasetError

#: Largest file that is read, in bytes.
MAX_BYTES = 2**32

_FIX = "only arrays of bool, integer or floating-point numbers are read; write the file again as .npy with numpy.save"
_KINDS = "biuf"
# NumPy 2 moved its core; files written by either version must be readable with either.
_CORES = ("numpy.core", "numpy._core")


class _Refused(Exception):
    """Inside this module: the pickle asks for more than arrays."""


def load_array(source: str | os.PathLike[str] | bytes, max_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """Reads a pickle that holds one array, or a list or tuple of arrays of equal shape (which are stacked).

    Nothing in the file is executed: any global but those that rebuild NumPy arrays is refused before it is looked up.

    Args:
        source: the file, or its bytes.
        max_bytes: larger files are refused unread.

    Returns:
        The array, of a bool, integer or float dtype, any shape.

    Raises:
        DatasetError: missing, unreadable, damaged, too large, or anything else than such arrays; the message names
            the refused global.
    """
    where = "pickle" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read(Path(source), max_bytes)
    if len(data) > max_bytes:
        raise DatasetError(
            "the pickle is too large", where=where, got=f"{len(data)} bytes", expected=f"at most {max_bytes}"
        )
    try:
        value = _Reader(io.BytesIO(data)).load()
        return _as_array(value)
    except _Refused as refused:
        raise DatasetError(
            "refused: the pickle holds more than an array",
            where=where,
            got=str(refused),
            expected="a NumPy array of numbers",
            fix=_FIX,
        ) from None
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise _damaged(where, error) from error
    except (EOFError, ImportError, RecursionError, pickle.UnpicklingError) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: BaseException) -> DatasetError:
    return DatasetError(
        "the pickle is damaged or no pickle",
        where=where,
        got=f"{type(error).__name__}: {str(error)[:200]}",
        expected="a pickled NumPy array of numbers",
        fix="copy or write the file again",
    )


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "there is no such file"
            raise DatasetError(what, where=str(path), expected="a .pkl file", fix="check the path")
        with path.open("rb") as file:
            # One byte more than allowed, so that a file that grows or lies about its size is noticed as well.
            return file.read(max_bytes + 1)
    except OSError as error:
        raise DatasetError("cannot be read", where=str(path), got=error.strerror or str(error)) from error


class _Reader(pickle.Unpickler):
    """Rebuilds arrays only. Every admitted global is replaced by a function of ours that checks its arguments."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise _Refused(f"the global {module}.{name}"[:300])
        return admitted

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a persistent id")


class _Array(np.ndarray):  # type: ignore[type-arg]
    """An array while it is being rebuilt: `__setstate__` sees only what was checked."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("an array's state is malformed")
        shape, dtype, fortran, raw = state[-4:]
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array's state has no dtype")
        if isinstance(raw, str):  # protocol 0 to 2 written by Python 2
            raw = raw.encode("latin-1")
        kind = dtype.checked()
        _check_size(shape, kind, raw)
        super().__setstate__((1, shape, kind, bool(fortran), bytes(raw)))


class _Dtype:
    """Stands for numpy.dtype: keeps the description, and never becomes a structured, object or text type."""

    def __init__(self, name: Any = None, align: Any = False, copy: Any = False, *rest: Any) -> None:
        if rest or not isinstance(name, str):
            raise _Refused("a dtype that is not a plain number")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise ValueError("a dtype's state is malformed")
        if any(part is not None for part in state[2:5]):
            raise _Refused("a structured dtype")
        self.order = state[1]

    def checked(self) -> np.dtype[Any]:
        if self.name[:1] not in _KINDS or not self.name[1:].isdigit():
            raise _Refused(f"the dtype {self.name!r}"[:100])
        return np.dtype(self.name).newbyteorder(self.order)  # type: ignore[arg-type]


def _check_size(shape: Any, dtype: np.dtype[Any], raw: Any) -> None:
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array's state is malformed")
    count = 1
    for n in shape:
        count *= n
    if count * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and {dtype} cannot be made of {len(raw)} bytes")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    if kind is not _ndarray or shape != (0,):
        raise _Refused("the reconstruction of something else than numpy.ndarray")
    return np.empty((0,), np.uint8).view(_Array)


def _ndarray(*_: Any) -> NoReturn:
    raise _Refused("a call of numpy.ndarray")


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, str)):
        raise ValueError("a NumPy scalar is malformed")
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    kind = dtype.checked()
    _check_size((), kind, data)
    return np.frombuffer(data, kind)[0]


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    """How protocol 5 writes contiguous arrays."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise ValueError("an array's state is malformed")
    data = bytes(raw) if isinstance(raw, (bytes, bytearray, memoryview, pickle.PickleBuffer)) else raw
    kind = dtype.checked()
    _check_size(shape, kind, data)
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes in Python 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("a call of _codecs.encode that is not for bytes")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda *empty: _empty_bytes(empty),
    ("builtins", "bytes"): lambda *empty: _empty_bytes(empty),
    ("builtins", "bytearray"): lambda raw=b"", *rest: _bytearray(raw, rest),
    ("__builtin__", "bytearray"): lambda raw=b"", *rest: _bytearray(raw, rest),
}
for _core in _CORES:
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


def _empty_bytes(arguments: tuple[Any, ...]) -> bytes:
    # Protocols 0 to 2 write b"" as a call of bytes(); with an argument it could ask for any amount of memory.
    if arguments:
        raise _Refused("a call of bytes with arguments")
    return b""


def _bytearray(raw: Any, rest: tuple[Any, ...]) -> bytearray:
    if rest == ("latin-1",) and isinstance(raw, str):
        return bytearray(raw.encode("latin-1"))
    if rest or not isinstance(raw, (bytes, bytearray)):
        raise _Refused("a call of bytearray that is not for bytes")
    return bytearray(raw)


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise _Refused(f"{type(value).__name__}" if value else f"an empty {type(value).__name__}")
    parts = [_as_array(each) for each in value]
    if len({part.shape for part in parts}) > 1:
        raise _Refused("arrays of different shapes")
    return np.stack(parts)
