"""The packed file: the same sequences as the tree, rebuilt when that changes, never half a file."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import synthetic
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import DatasetError
from gaitsdk_training.data import FrameSlices, PackedSequences, PxKSampler, from_tree, load_batch, pack


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 identities x 2 types x 2 views, of 8 frames; one sequence of other length and one of other size."""
    root = tmp_path_factory.mktemp("walks") / "tree"
    synthetic.write_casiab(root, [1, 2, 80], types=("nm-01", "bg-01"), views=("000", "090"), frames=8)
    longer = synthetic.sequence(1, "nm-01", "000", frames=13)
    (root / "001" / "nm-01" / "000" / "000.pkl").write_bytes(pickle.dumps(longer, protocol=4))
    larger = np.pad(longer, ((0, 0), (10, 10), (5, 40)))
    (root / "002" / "bg-01" / "090" / "090.pkl").write_bytes(pickle.dumps(larger, protocol=4))
    return root


@pytest.fixture
def tree(walks: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(walks, tmp_path / "tree"))


def count(calls: list[tuple[int, int]]) -> Callable[[int, int], None]:
    return lambda done, total: calls.append((done, total))


def test_the_same_sequences_as_the_tree(tree: Path, tmp_path: Path) -> None:
    packed, plain = pack(tree, tmp_path / "cache" / "walks.pack"), from_tree(tree)
    for opened in (packed, PackedSequences(packed.path), from_tree(packed.path)):
        assert len(opened) == 12 and opened.size == 64 and isinstance(opened.sequences, FrameSlices)
        for name in ("identities", "types", "views", "labels"):
            np.testing.assert_array_equal(getattr(opened, name), getattr(plain, name))
        for ours, theirs in zip(opened.sequences, plain.sequences, strict=True):
            assert ours.dtype == np.uint8 and not ours.flags.writeable
            np.testing.assert_array_equal(ours, theirs)
    sampler = PxKSampler(packed.labels, 2, 2)
    chosen = sampler.batch(3)
    ours, theirs = (load_batch(each, chosen, 5, "fixed_ordered", np.random.default_rng(1)) for each in (packed, plain))
    np.testing.assert_array_equal(ours, theirs)
    assert sorted(os.listdir(packed.path.parent)) == [".walks.pack.lock", "walks.pack"]
    frames = sum(map(len, plain.sequences))
    assert frames * 4096 < packed.path.stat().st_size < frames * 4096 + 4096 + 4000


@pytest.mark.parametrize("size", [64, 48])  # frames that are pages, and frames that are not
def test_frames_are_fetched_ahead(walks: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(walks, tmp_path / "walks.pack", size=size).subset([1, 11])
    asked: list[tuple[int, int]] = []
    sequences = packed.sequences
    assert isinstance(sequences, FrameSlices) and sequences.prefetch is not None
    for index in range(2):  # a wrong range would be refused by the system
        sequences.prefetch(int(sequences.starts[index]), int(sequences.lengths[index]))
    monkeypatch.setattr(sequences, "prefetch", lambda start, length: asked.append((start, length)))
    load_batch(packed, [1, 0, 1], 4, "fixed_ordered", np.random.default_rng(0), (0, 2))
    starts, lengths = sequences.starts.tolist(), sequences.lengths.tolist()
    assert asked == [(starts[1], lengths[1])] * 2  # its share of the batch only


def test_parts_of_it(tree: Path, tmp_path: Path) -> None:
    path = pack(SequenceTree(tree), tmp_path / "walks.pack").path
    assert from_tree(path, types=["bg-01"], views=["090"]).identities.tolist() == ["001", "002", "080"]
    assert from_tree(path, dataset="casiab").classes == ["001", "002"]
    assert from_tree(path, dataset="casiab", part="test").classes == ["080"]
    some = from_tree(path, identities=["002", "666"])
    assert some.classes == ["002"] and some.report is not None and some.report.absent == ("666",)
    assert some.subset(some.types == "nm-01")[1].shape == (8, 64, 64)
    np.testing.assert_array_equal(some[0], synthetic.sequence(2, "bg-01", "000", frames=8))
    for wrong, message in (
        ({"types": ["cl-01"]}, "no sequence has any of these types; got cl-01; expected some of bg-01, nm-01"),
        ({"identities": ["666"]}, "no usable sequence"),
        ({"size": 128}, "another size"),
        ({"dataset": "grew", "types": ["00"]}, "not named as in grew"),
    ):
        with pytest.raises(DatasetError, match=message):
            from_tree(path, **wrong)


def test_it_is_packed_once_and_again_when_the_tree_changes(tree: Path, tmp_path: Path) -> None:
    path, calls = tmp_path / "walks.pack", list[tuple[int, int]]()
    first = pack(tree, path, progress=count(calls))
    assert calls == [(done, 12) for done in range(1, 13)]
    inode = path.stat().st_ino
    pack(tree, path, progress=count(calls))
    assert len(calls) == 12 and path.stat().st_ino == inode
    changed = tree / "001" / "nm-01" / "090" / "090.pkl"
    before = changed.stat()
    changed.write_bytes(pickle.dumps(synthetic.sequence(9, "nm-01", "090", frames=8), protocol=4))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = pack(tree, path, progress=count(calls))
    assert len(calls) == 24 and again.sources != first.sources
    np.testing.assert_array_equal(again[3], synthetic.sequence(9, "nm-01", "090", frames=8))
    # What was mapped before stays as it was.
    np.testing.assert_array_equal(first[3], synthetic.sequence(1, "nm-01", "090", frames=8))
    shutil.rmtree(tree / "080")
    assert pack(tree, path).classes == ["001", "002"]
    np.save(tree / "001" / "nm-01" / "090" / "aligned-sil.npy", first[3])  # another file is chosen now
    (tree / "001" / "nm-01" / "090" / "090.pkl").rename(tree / "001" / "nm-01" / "090" / "raw.pkl")
    assert np.array_equal(pack(tree, path)[3], first[3])
    assert pack(tree, path, size=32).size == 32


def test_broken_files_are_listed_in_it(tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tree / "001" / "nm-01" / "090" / "090.pkl"
    broken.write_bytes(b"")
    (tree / "002" / "cl-01" / "000").mkdir(parents=True)
    for opened in (pack(tree, tmp_path / "walks.pack"), pack(tree, tmp_path / "walks.pack")):
        assert len(opened) == 11 and opened.report is not None
        assert {each.path for each in opened.report.skipped} == {str(broken), str(tree / "002" / "cl-01" / "000")}
    caplog.clear()
    from_tree(tmp_path / "walks.pack")
    assert "11 sequences, 2 skipped" in caplog.text and str(broken) in caplog.text
    for file in tree.rglob("*.pkl"):
        file.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"no usable sequence; got 12 .* all of them unusable"):
        pack(tree, tmp_path / "walks.pack")
    assert len(PackedSequences(tmp_path / "walks.pack")) == 11  # the last whole one is still there
    assert not list(tmp_path.glob(".*.part"))


def child(work: Callable[[], Any]) -> int:
    """Runs it in a process of its own; gives the exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode if process.exitcode is not None else 999


@pytest.mark.parametrize("stale", [False, True])
def test_a_killed_run_leaves_no_half_file(tree: Path, tmp_path: Path, stale: bool) -> None:
    path = tmp_path / "walks.pack"
    if stale:
        pack(tree, path)
        shutil.rmtree(tree / "080")
    total = 8 if stale else 12

    def killed(done: int, _: int) -> None:
        if done == total:  # everything read, nothing finished
            os.kill(os.getpid(), signal.SIGKILL)

    assert child(lambda: pack(tree, path, progress=killed)) == -signal.SIGKILL
    assert list(tmp_path.glob(".*.part"))
    assert path.exists() == stale and (not stale or len(PackedSequences(path)) == 12)
    assert len(pack(tree, path)) == total  # the lock is free, and the remains are overwritten
    assert not list(tmp_path.glob(".*.part"))


def test_of_several_processes_one_packs(tree: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    packed = context.Value("i", 0)

    def work() -> None:
        def slowly(done: int, total: int) -> None:
            with packed.get_lock():
                packed.value += 1
            time.sleep(0.01)

        os._exit(0 if len(pack(tree, tmp_path / "walks.pack", progress=slowly)) == 12 else 3)

    processes = [context.Process(target=work) for _ in range(3)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
    assert [each.exitcode for each in processes] == [0, 0, 0] and packed.value == 12


def test_a_full_disk_leaves_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match="cannot be written; got No space left on device"):
        pack(tree, tmp_path / "walks.pack")
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith((".pack", ".part"))] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"x", "damaged"),
        (lambda data: data[:5000], "damaged"),
        (lambda data: data[:-20] + b"#" + data[-19:], "an index that was changed"),
        (lambda data: data[:8] + b"\x09" + data[9:], "another version"),
        (lambda data: data[:30], "no packed file"),
    ],
)
def test_damaged_files_are_refused_and_packed_again(
    walks: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = pack(walks, tmp_path / "walks.pack").path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=message) as caught:
        PackedSequences(path)
    assert str(path) in str(caught.value)
    assert len(pack(walks, path)) == 12


def test_other_files_are_not_overwritten(walks: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("chapter 1")
    for path in (mine, tmp_path):
        with pytest.raises(DatasetError, match="something else than a packed file"):
            pack(walks, path)
    assert mine.read_text() == "chapter 1"
    with pytest.raises(DatasetError, match="no packed file"):
        from_tree(mine)
    with pytest.raises(DatasetError, match="cannot be read"):
        PackedSequences(tmp_path / "absent.pack")
