"""The restricted pickle reader: every array as it was, and nothing of a hostile file ever runs."""

from __future__ import annotations

import builtins
import datetime
import io
import os
import pickle
import pickletools
import shutil
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk import safe_pickle
from gaitsdk.errors import DatasetError
from gaitsdk.safe_pickle import load_array

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DTYPES = ["?", "u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", "<u8", "<f2", "<f4", ">f4", "<f8", ">f8"]


def array(dtype: str, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 120, shape)
    return numbers.astype(dtype)


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """A file that must not appear while the test runs."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of the pickle ran"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_as_they_were(protocol: int, dtype: str, tmp_path: Path) -> None:
    whole = array(dtype)
    for written in (whole, np.asfortranarray(whole), whole[:, ::2], whole[:0], np.array(1, dtype)):
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(written, protocol))
        for read in (load_array(path), load_array(str(path)), load_array(path.read_bytes())):
            assert type(read) is np.ndarray
            assert read.dtype == written.dtype
            assert read.shape == written.shape
            assert np.array_equal(read, written)
            assert read.flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lists_of_equal_arrays_are_stacked(protocol: int) -> None:
    frames = list(array("u1"))
    for written in (frames, tuple(frames)):
        assert np.array_equal(load_array(pickle.dumps(written, protocol)), array("u1"))
    assert np.array_equal(load_array(pickle.dumps([frames, frames], protocol)), np.stack([array("u1")] * 2))
    ratios = [np.float32(0.5), np.float32(0.25)]
    assert np.array_equal(load_array(pickle.dumps(ratios, protocol)), np.array(ratios))
    assert load_array(pickle.dumps(np.uint8(7), protocol)) == 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_files_of_numpy_1_and_2(protocol: int, core: bytes) -> None:
    """By patching the module's name in the file, where its length is written beside it from protocol 4 on."""
    data = pickle.dumps(array("f4"), protocol)
    mine = b"numpy.core" if b"numpy.core" in data else b"numpy._core"
    name = b".numeric" if protocol == 5 else b".multiarray"
    old, new = mine + name, core + name
    if protocol >= 4:
        old, new = bytes([len(old)]) + old, bytes([len(new)]) + new
        data = data[:2] + data[11:]  # without the frame, whose length would be wrong
    assert old in data
    assert np.array_equal(load_array(data.replace(old, new)), array("f4"))


def test_a_file_of_python_2() -> None:
    """Protocol 2 as Python 2 wrote it: bytes as str, names of its modules."""
    raw = bytes(range(250, 256))
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(raw) + b"tb."
    )
    assert np.array_equal(load_array(data), np.frombuffer(raw, np.uint8).reshape(2, 3))


@given(st.binary(min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_damage_gives_an_array_or_an_error_of_ours(noise: bytes, protocol: int, place: int) -> None:
    data = pickle.dumps(array("u1"), protocol)
    place %= len(data)
    for damaged in (data[:place] + noise + data[place + len(noise) :], noise, data[:place]):
        try:
            assert type(load_array(damaged)) is np.ndarray
        except DatasetError as error:
            assert "expected" in str(error)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_refused(protocol: int) -> None:
    data = pickle.dumps(array("u1", (2, 3)), protocol)
    for end in range(len(data)):
        with pytest.raises(DatasetError, match="damaged"):
            load_array(data[:end])


def hostile(canary: Path) -> dict[str, tuple[Any, str]]:
    """What is pickled, and the global that the message must name."""
    shell, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    objects = np.array([Call(os.system, shell), 1], dtype=object)
    system = f"{os.system.__module__}.system"
    return {
        "os.system": (Call(os.system, shell), system),
        "subprocess": (
            Call(subprocess.Popen, ["touch", str(canary)]),
            ".Popen",
        ),  # protocols 0 to 2 call the module commands
        "eval": (Call(builtins.eval, code), ".eval"),
        "exec": (Call(builtins.exec, code), ".exec"),
        "open": (Call(open, str(canary), "w"), ".open"),
        "getattr": (Call(getattr, "x", "upper"), ".getattr"),
        "import": (Call(__import__, "antigravity"), ".__import__"),
        "nested": (Call(np.dtype, Call(os.system, shell)), system),
        "inside a list": ([array("u1"), Call(os.system, shell)], system),
        "inside a tuple": ((array("u1"), (Call(os.system, shell),)), system),
        "as a state": (Call(np.dtype, "u1", state=(Call(os.system, shell),)), system),
        "numpy.load": (Call(np.load, str(canary), None, True), ".load"),
        "numpy.save": (Call(np.save, str(canary), array("u1")), ".save"),
        "runstring": (Call(np.testing.runstring, code, {}) if hasattr(np.testing, "runstring") else None, "runstring"),
        "memmap": (Call(np.memmap, str(canary), "uint8", "w+", 0, (4,)), "memmap"),
        "rmtree": (Call(shutil.rmtree, str(canary.parent / "none")), "shutil.rmtree"),
        "objects": (objects, system),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", hostile(Path("x")))
def test_nothing_runs(name: str, protocol: int, canary: Path) -> None:
    value, refused = hostile(canary)[name]
    if value is None:
        pytest.skip("this NumPy has no such function")
    data = pickle.dumps(value, protocol)
    with pytest.raises(DatasetError) as caught:
        load_array(data)
    message = str(caught.value)
    assert refused in message
    for part in ("pickle: refused", "expected a NumPy array of numbers", "Fix: "):
        assert part in message


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """The attacks above are real: the ordinary reader runs them."""
    canary = tmp_path / "canary"
    for name in ("os.system", "eval", "exec", "open", "nested", "inside a list", "as a state", "memmap", "objects"):
        try:
            pickle.loads(pickle.dumps(hostile(canary)[name][0]))
        except (TypeError, ValueError, AttributeError):
            pass  # after it ran
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n(VSHELL\ntR.",
        b"cposix\nsystem\n(VSHELL\ntR.",
        b"c__builtin__\neval\n(VCODE\ntR.",
        b"cbuiltins\nexec\n(VCODE\ntR.",
        b"(VSHELL\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nVSHELL\no.",  # OBJ
        b"\x80\x02cos\nsystem\nVSHELL\n\x85\x81.",  # NEWOBJ
        b"\x80\x04cos\nsystem\nVSHELL\n\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x04\x8c\x02os\x8c\x06system\x93VSHELL\n\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x05numpy\x8c\x12testing.runstring\x93VCODE\n}\x86R.",  # a dotted name
        b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__reduce_ex__\x93.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"Pos.system\n.",  # persistent id
        b"CORE.multiarray\nscalar\n(cos\nsystem\n(VSHELL\ntRVx\ntR.",
        b"cCORE.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntVb\ntR.",
        b"cnumpy\nload\n(VFILE\nNI01\ntR.",
        b"cnumpy.testing\nrunstring\n(VCODE\n(dtR.",
        b"cnumpy.testing._private.utils\nrunstring\n(VCODE\n(dtR.",
        b"cnumpy.f2py.capi_maps\neval\n(VCODE\ntR.",
        b"cnumpy.distutils.exec_command\nexec_command\n(VSHELL\ntR.",
        b"cnumpy.lib.npyio\nload\n(VFILE\nNI01\ntR.",
        b"cgaitsdk.safe_pickle\n_read\n(VFILE\nI10\ntR.",
    ],
)
def test_hand_written_attacks(call: bytes, core: str, canary: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner.npy"
    np.save(inner, np.array([Call(os.system, f"touch {canary}")], dtype=object), allow_pickle=True)
    for word, text in (
        (b"SHELL", f"touch {canary}"),
        (b"CODE", f"open({str(canary)!r}, 'w')"),
        (b"FILE", str(inner)),
        (b"CORE", core),
    ):
        call = call.replace(word, text.encode())
    with pytest.raises(DatasetError):
        load_array(call)


@pytest.mark.parametrize(
    "state",
    [
        b"(N(V__defaults__\n(I1\ntVx\nI2\ndt",  # slots: sets attributes of a function
        b"(V__dict__\nI2\nd",
        b"(I1\n(I2\ntt",
    ],
)
@pytest.mark.parametrize(
    "name",
    ["numpy\nndarray", "numpy\ndtype", "_codecs\nencode", "numpy.core.multiarray\n_reconstruct", "builtins\nbytes"],
)
def test_admitted_globals_cannot_be_changed(name: str, state: bytes) -> None:
    before = {key: (dict(vars(f)), getattr(f, "__defaults__", None)) for key, f in safe_pickle._ADMITTED.items()}
    with pytest.raises(DatasetError):
        load_array(b"c" + name.encode() + b"\n" + state + b"b.")
    after = {key: (dict(vars(f)), getattr(f, "__defaults__", None)) for key, f in safe_pickle._ADMITTED.items()}
    assert before == after
    assert np.array_equal(load_array(pickle.dumps(array("u1"))), array("u1"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([1, None], dtype=object), "dtype 'O8'"),
        (np.array(["a"]), "dtype 'U1'"),
        (np.array([b"a"]), "dtype 'S1'"),
        (np.array([1j]), "dtype 'c16'"),
        (np.zeros(2, "M8[s]"), "dtype"),
        (np.zeros(2, [("a", "u1")]), "dtype"),
        (np.zeros(2, "V3"), "dtype"),
        (np.ma.masked_array([1, 2]), "global numpy.ma"),
        (np.recarray(2, [("a", "u1")]), "rec"),
        ({"a": array("u1")}, "instruction"),
        (OrderedDict(a=1), "OrderedDict"),
        ({1}, "set"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        ([], "an empty list"),
        ((), "an empty tuple"),
        (3, "type int"),
        (None, "type NoneType"),
        (b"abc", "type bytes"),
        ([1, 2], "type int"),
        ([array("u1"), array("u1")[:2]], "different shapes"),
        ([[[[[[[[[[array("u1")]]]]]]]]]], "lists in lists"),
        (np.ndarray, "type Global"),
        (array, "global "),
    ],
)
def test_anything_else_is_refused(value: Any, says: str) -> None:
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        with pytest.raises(DatasetError, match="refused: the pickle holds something else than an array") as caught:
            load_array(pickle.dumps(value, protocol))
        assert says in str(caught.value).replace("EMPTY_SET", "set")


def _repeated(value: Any, times: int, depth: int) -> Any:
    for _ in range(depth):
        value = [value] * times
    return value


def huge() -> dict[str, bytes]:
    """A few bytes that ask for gigabytes."""
    state = b"cnumpy\ndtype\n(Vu1\nI0\nI1\ntR(I3\nV|\nNNNI-1\nI-1\nI0\ntb"
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n"
    array, empty = np.zeros(2**18, np.uint8), np.zeros(0, np.uint8)
    return {
        "lists that repeat an array": pickle.dumps(_repeated(array, 100, 5)),
        "lists that repeat nothing": pickle.dumps(_repeated(empty, 100, 5)),
        "bytes": b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"x.",
        "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        "bytes8, more than memory": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
        "text8": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
        "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "long4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "negative long4": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
        "memo": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
        "memo as text": b"]p4294967295\n.",
        "call of bytes": b"cbuiltins\nbytes\n(L10000000000000L\ntR.",
        "shape": start + b"(L1000000000000000L\nt" + state + b"I0\nVabc\ntb.",
        "negative shape": start + b"(I-1\nI-3\nt" + state + b"I0\nVabc\ntb.",
        "overflowing shape": start + b"(L4294967296L\nL4294967296L\nt" + state + b"I0\nV\ntb.",
        "shape that is no number": start + b"(Vx\nt" + state + b"I0\nVabc\ntb.",
        "scalar": b"cnumpy.core.multiarray\nscalar\n(" + state + b"Vabcdef\ntR.",
        "without contents": start[: -len(b"(I1\n")] + b".",
        "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
        "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
        "many instructions": b"]" * 600_000 + b".",
    }


@pytest.mark.parametrize("name", huge())
def test_small_files_that_ask_for_much(name: str) -> None:
    with pytest.raises(DatasetError):
        load_array(huge()[name])


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS works on Linux only")
def test_small_files_that_ask_for_much_take_no_memory(tmp_path: Path) -> None:
    """In a process that may have 2 GiB of addresses: a reader that believes a length would die there."""
    for index, data in enumerate(huge().values()):
        (tmp_path / f"{index:02}.pkl").write_bytes(data)
    script = """
import resource, sys, pathlib
from gaitsdk.errors import DatasetError
from gaitsdk.safe_pickle import load_array
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        load_array(path)
    except DatasetError as error:
        if "MemoryError" in str(error):
            raise SystemExit(f"{path}: {error}")
    else:
        raise SystemExit(f"{path} was read")
# Not getrusage: its maximum survives exec, so it would be that of the process that runs the tests.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    assert int(done.stdout) < 400 * 1024  # KiB


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pkl"
    with pytest.raises(DatasetError, match="no such file"):
        load_array(path)
    with pytest.raises(DatasetError, match="is a folder"):
        load_array(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"x\.pkl: the pickle is damaged") as caught:
        load_array(path)
    assert "Fix: " in str(caught.value)
    path.write_bytes(pickle.dumps(array("u1")))
    size = path.stat().st_size
    assert load_array(path, max_bytes=size).shape == (3, 4, 5)
    for source in (path, path.read_bytes()):
        with pytest.raises(DatasetError, match=f"got {size} bytes; expected at most {size - 1}"):
            load_array(source, max_bytes=size - 1)

    def refuse(*_: Any) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DatasetError, match="Permission denied"):
        load_array(path)


def test_the_instructions_are_spelled_as_python_spells_them() -> None:
    assert {each.name for each in pickletools.opcodes} >= safe_pickle._INSTRUCTIONS
