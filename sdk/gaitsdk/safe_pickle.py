"""The only place that reads pickles: a restricted reader that admits NumPy arrays of numbers and nothing else.

Two walls: an allow-list of the pickle machine's instructions, checked over the whole file before any of them runs, and
an allow-list of globals, each of which is replaced by a function of ours that checks its arguments.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import DatasetError

#: Largest file that is read, in bytes.
MAX_BYTES = 2**32
#: Instructions of one pickle; an array takes about 40, so this is a list of more than 10000 arrays.
_MAX_INSTRUCTIONS = 500_000
_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS LIST "
    "EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE "
    "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE".split()
)
_FIX = "only arrays of bool, integer or floating-point numbers are read; write the file again as .npy with numpy.save"
_KINDS = "biuf"
_DEEPEST_LIST = 8


class _Refused(Exception):
    """Inside this module: the pickle asks for more than arrays."""


def load_array(source: str | os.PathLike[str] | bytes, max_bytes: int = MAX_BYTES) -> NDArray[Any]:
    """Reads a pickle that holds one array, or a list or tuple of arrays of equal shape (which are stacked).

    Nothing in the file is executed: any global but those that rebuild NumPy arrays is refused before it is looked up,
    and there is no other way of reading to fall back to. Every pickle protocol, written with NumPy 1 or 2.

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
        raise _too_large(where, len(data), max_bytes)
    try:
        _check_instructions(data)
        # latin-1 keeps the bytes of arrays that Python 2 wrote as its str.
        return _as_array(_Reader(io.BytesIO(data), encoding="latin-1").load(), max_bytes)
    except _Refused as refused:
        raise DatasetError(
            "refused: the pickle holds something else than an array",
            where=where,
            got=str(refused),
            expected="a NumPy array of numbers",
            fix=_FIX,
        ) from None
    except (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RecursionError) as error:
        raise _damaged(where, error) from error
    except (TypeError, ValueError, pickle.UnpicklingError, struct.error) as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: BaseException) -> DatasetError:
    return DatasetError(
        "the pickle is damaged or no pickle",
        where=where,
        got=f"{type(error).__name__}: {str(error)[:200]}",
        expected="a pickled NumPy array of numbers",
        fix="copy or write the file again",
    )


def _too_large(where: str, size: int, max_bytes: int) -> DatasetError:
    return DatasetError(
        "the pickle is too large",
        where=where,
        got=f"{size} bytes",
        expected=f"at most {max_bytes}",
        fix="cut the sequence, or load_array(..., max_bytes=...) where the file is what it should be",
    )


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "there is no such file"
            raise DatasetError(what, where=str(path), expected="a .pkl file", fix="check the path")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise _too_large(str(path), size, max_bytes)
            return file.read(size + 1)  # not max_bytes, which would be allocated
    except OSError as error:
        raise DatasetError(
            "cannot be read", where=str(path), got=error.strerror or str(error), fix="check its rights"
        ) from error


def _check_instructions(data: bytes) -> None:
    """Refuses pickles that use more of the pickle machine than arrays need.

    The machine itself believes lengths and memo numbers: ten bytes can make it fill gigabytes. Here lengths are
    compared with what is there (`genops` does), and memo numbers with the number of instructions.
    """
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name not in _INSTRUCTIONS:
            raise _Refused(f"the pickle instruction {instruction.name}{_globals_named(data)}")
        if count >= _MAX_INSTRUCTIONS:
            raise _Refused(f"more than {_MAX_INSTRUCTIONS} pickle instructions")
        if "PUT" in instruction.name and not 0 <= int(argument or 0) <= count:
            raise ValueError(f"memo number {argument} after {count} instructions")


def _globals_named(data: bytes) -> str:
    """For the message: the globals of a refused pickle, as far as they can be told without running it."""
    named: list[str] = []
    texts: list[str] = []
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name in ("GLOBAL", "INST"):
            named.append(str(argument).replace(" ", "."))
        elif instruction.name == "STACK_GLOBAL":
            named.append(".".join(texts[-2:]))
        elif "UNICODE" in instruction.name:
            texts.append(str(argument)[:100])
        if len(named) >= 5 or count >= _MAX_INSTRUCTIONS:
            break
    return f" (with {', '.join(named)[:300]})" if named else ""


class _Reader(pickle.Unpickler):
    """Rebuilds arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise _Refused(f"the global {module}.{name}"[:300])
        return _Global(admitted)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("a persistent id")


class _Global:
    """What stands for a global in a pickle: callable, but nothing can be set on it (BUILD can set a function's
    attributes, its default arguments for example)."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("a change of a global")


class _Dtype:
    """Stands for numpy.dtype: keeps the description, and never becomes a structured, object or text type."""

    __slots__ = ("name", "order")

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
        if self.name[:1] not in _KINDS or not (self.name[1:].isascii() and self.name[1:].isdigit()):
            raise _Refused(f"the dtype {self.name!r}"[:100])
        return np.dtype(self.name).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """An array while it is being rebuilt; a plain object, so that NumPy's own `__setstate__` is out of reach."""

    __slots__ = ("value",)

    def __init__(self, value: NDArray[Any] | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        # (version, shape, dtype, is Fortran order, bytes); the oldest files have no version.
        if self.value is not None or not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("an array's state is malformed")
        shape, dtype, fortran, raw = state[-4:]
        self.value = _from_bytes(raw, dtype, shape, "F" if fortran else "C")


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    if isinstance(raw, str):
        raw = raw.encode("latin-1")
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
        raise ValueError("an array's state is malformed")
    kind = dtype.checked()
    if isinstance(raw, list):
        raise _Refused("an array of objects")
    if not isinstance(raw, (bytes, bytearray)) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's state is malformed")
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and {kind} cannot be made of {len(raw)} bytes"[:200])
    # A bytearray of its own, so that the array can be written to, as every array that was read can.
    return np.frombuffer(bytearray(raw), kind).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if not isinstance(kind, _Global) or kind.function is not _ndarray or shape != (0,):
        raise _Refused("the reconstruction of something else than numpy.ndarray")
    return _Array()


def _ndarray(*_: Any) -> NoReturn:
    raise _Refused("a call of numpy.ndarray")


def _scalar(dtype: Any, raw: Any) -> _Array:
    return _Array(_from_bytes(raw, dtype, (), "C"))


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """How protocol 5 writes contiguous arrays."""
    if order not in ("C", "F"):
        raise ValueError("an array's state is malformed")
    return _Array(_from_bytes(raw, dtype, shape, order))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes in Python 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("a call of _codecs.encode that is not for bytes")
    return text.encode("latin-1")


def _bytes(*arguments: Any) -> bytes:
    """How protocols 0 to 2 write b""; with an argument it could ask for any amount of memory."""
    if arguments:
        raise _Refused("a call of bytes with arguments")
    return b""


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytes"): _bytes,
}
# NumPy 2 moved its core; files written by either version must be readable with either.
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _frombuffer


def _as_array(value: Any, max_bytes: int) -> NDArray[Any]:
    size = 0
    # A list may stand many times in another list: a small file could ask for any amount. So count before stacking.
    for count, array in enumerate(_leaves(value)):
        size += array.nbytes
        if size > max_bytes or count >= _MAX_INSTRUCTIONS:
            raise _Refused(f"lists of more than {max_bytes} bytes or {_MAX_INSTRUCTIONS} arrays in all")
    return _stacked(value)


def _leaves(value: Any, depth: int = 0) -> Iterator[NDArray[Any]]:
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without contents")
        yield value.value
        return
    if not isinstance(value, (list, tuple)):
        raise _Refused(f"an object of type {type(value).__name__.lstrip('_')}")
    if not value or depth >= _DEEPEST_LIST:
        raise _Refused("lists in lists" if value else f"an empty {type(value).__name__}")
    for each in value:
        yield from _leaves(each, depth + 1)


def _stacked(value: Any) -> NDArray[Any]:
    """Arrays in lists as one array; `_leaves` has seen that there is nothing else."""
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    parts = [_stacked(each) for each in value]
    shapes = sorted({part.shape for part in parts})
    if len(shapes) > 1:
        raise _Refused(f"arrays of different shapes, {', '.join(map(str, shapes[:4]))}")
    return np.stack(parts)
