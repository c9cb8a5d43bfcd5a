"""What the gallery promises about its file: kill -9, truncation, bit flips, refused disks, and deletion for good."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gaitsdk.errors import EmptyGalleryError, GalleryCorruptError, GalleryError
from gaitsdk.gallery import Gallery

MODEL = {"fingerprint": "abc", "strips": 4, "dims": 32}
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, forks or permissions")


def maps(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 4, 32)).astype(np.float32)


def five(path):
    """A gallery of five entries, one commit each."""
    gallery = Gallery.open(path, **MODEL)
    for i, one in enumerate(maps(5)):
        gallery.add(f"person {i}", one, number=i)
    return gallery


def read_everything(path):
    """Number of entries, after checking that each is what was added; raises what the gallery raises."""
    with Gallery.open(path, **MODEL) as gallery:
        count = gallery.count
        try:
            ids, distances = gallery.search(maps(5), 5)
        except EmptyGalleryError:
            assert count == 0 and gallery.identities() == []
            return 0
        expected = list(range(1, count + 1))
        assert ids.shape == (5, count) and sorted(ids[0]) == expected
        assert gallery.get(expected).tobytes() == maps(5)[:count].tobytes()
        assert gallery.identity_of(expected) == gallery.identities() == [f"person {i}" for i in range(count)]
        assert [gallery.metadata(entry) for entry in expected] == [{"number": i} for i in range(count)]
        assert ids[:count, 0].tolist() == expected and not distances[:count, 0].any()
        return count


def outcome(path):
    """What opening and reading gives: a number of entries, or "refused". Anything else fails the test."""
    try:
        return read_everything(path)
    except GalleryError as error:
        assert "Fix:" in str(error) or isinstance(error, GalleryCorruptError)
        return "refused"


CHILD = """
import sys
import numpy as np
from gaitsdk.gallery import Gallery
seed = int(sys.argv[2])
rng = np.random.default_rng(seed)
print("ready", flush=True)
with Gallery.open(sys.argv[1], fingerprint="abc", strips=4, dims=32) as gallery:
    while True:
        n = int(rng.integers(1, 4))
        ids = gallery.add_many([f"s{seed}"] * n, np.full((n, 4, 32), seed + 0.5, np.float32), [{"of": n}] * n)
        print(*ids, flush=True)
"""


@posix
@pytest.mark.timeout(120)
def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path):
    dice = random.Random(1)
    acknowledged: dict[Path, dict[int, int]] = {}
    for seed in range(50):
        # Odd rounds begin a new gallery and may die while it is created; even rounds go on with one gallery.
        path = tmp_path / (f"new{seed}.db" if seed % 2 else "people.db")
        mine = acknowledged.setdefault(path, {})
        command = [sys.executable, "-c", CHILD, str(path), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            first = "" if seed % 2 else child.stdout.readline()
            time.sleep(dice.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            lines = (first + child.stdout.read()).splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n"):
                mine.update(dict.fromkeys(map(int, line.split()), seed))
        if path.exists():
            check_after_kill(path, mine)
        else:
            assert not mine
    assert len(acknowledged[tmp_path / "people.db"]) > 100


def check_after_kill(path, mine):
    with Gallery.open(path, create=False, **MODEL) as gallery:
        if mine:
            ids = sorted(mine)
            assert gallery.identity_of(ids) == [f"s{mine[entry]}" for entry in ids]
            np.testing.assert_array_equal(gallery.get(ids)[:, 0, 0], [mine[entry] + 0.5 for entry in ids])
        if gallery.count:
            # Every entry is whole, acknowledged or not, and belongs to a commit that is there as a whole.
            everyone = np.sort(gallery.search(maps(1), gallery.count)[0][0])
            assert everyone.tolist() == list(range(1, gallery.count + 1)) and set(mine) <= set(everyone)
            at = 1
            while at <= gallery.count:
                at += gallery.metadata(at)["of"]
            assert at == gallery.count + 1


def test_truncated_file(tmp_path):
    five(tmp_path / "whole.db").close()
    whole = (tmp_path / "whole.db").read_bytes()
    assert outcome(tmp_path / "whole.db") == 5
    path = tmp_path / "cut.db"
    offsets = {*range(0, 128), *range(0, len(whole), 509), *range(0, len(whole), 8192), len(whole) - 1}
    for offset in sorted(offsets):
        path.write_bytes(whole[:offset])
        assert outcome(path) == "refused", f"cut at {offset} of {len(whole)}"
        path.unlink()


def test_truncated_or_flipped_journal_gives_a_prefix(tmp_path):
    gallery = five(tmp_path / "live.db")  # stays open: the journal holds the commits
    path = tmp_path / "crash.db"
    journal = (tmp_path / "live.db-wal").read_bytes()
    seen = set()
    dice = random.Random(2)

    def survives(data):
        shutil.copy(tmp_path / "live.db", path)
        Path(f"{path}-wal").write_bytes(data)
        seen.add(outcome(path))
        for file in tmp_path.glob("crash.db*"):
            file.unlink()

    for offset in range(0, len(journal) + 1, 997):
        survives(journal[:offset])
    for _ in range(100):
        survives(flipped(journal, dice))
    survives(journal)
    gallery.close()
    assert seen <= {0, 1, 2, 3, 4, 5, "refused"} and {0, 2, 5} <= seen


def flipped(data, dice, end=None):
    position = dice.randrange(8 * (end or len(data)))
    changed = bytearray(data)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


def test_bit_flips_are_detected_or_harmless(tmp_path):
    five(tmp_path / "whole.db").close()
    whole = (tmp_path / "whole.db").read_bytes()
    path = tmp_path / "flipped.db"
    dice = random.Random(3)
    counts = {5: 0, "refused": 0}
    for i in range(600):
        path.write_bytes(flipped(whole, dice, end=100 if i % 6 == 0 else None))
        counts[outcome(path)] += 1  # anything but all five or a refusal is a KeyError
        for file in tmp_path.glob("flipped.db*"):
            file.unlink()
    assert counts["refused"] > 20


def test_a_flip_in_features_identity_or_metadata_is_always_detected(tmp_path):
    five(tmp_path / "whole.db").close()
    whole = (tmp_path / "whole.db").read_bytes()
    path = tmp_path / "flipped.db"
    blob = maps(5)[3].tobytes()
    # (The identities' key column and its index hold the name again: damage the first of the copies, the name.)
    for needle in (blob[:16], blob[-16:], b'{"number": 3}', b"person 3", b'"fingerprint": "abc"'):
        at = whole.index(needle)
        for offset in range(len(needle)):
            changed = bytearray(whole)
            changed[at + offset] ^= 1
            path.write_bytes(changed)
            with pytest.raises(GalleryCorruptError):
                read_everything(path)
    changed = bytearray(whole)
    changed[whole.index(blob) + 100] ^= 64
    path.write_bytes(changed)
    with Gallery.open(path, **MODEL) as gallery:
        assert gallery.get([3]).tobytes() == maps(5)[2].tobytes()  # the others can still be saved
        for call in (lambda: gallery.get([4]), lambda: gallery.search(maps(1), 1)):
            with pytest.raises(GalleryCorruptError, match="entry 4"):
                call()


@pytest.mark.parametrize("size", [1, 99, 100, 512, 8192, 40_000])
def test_random_bytes(tmp_path, size):
    path = tmp_path / "noise.db"
    for seed in range(5):
        noise = random.Random(seed).randbytes(size)
        for content in (noise, b"SQLite format 3\0" + noise):
            path.write_bytes(content)
            with pytest.raises(GalleryCorruptError):
                read_everything(path)
            assert path.read_bytes() == content


def test_another_format_version(tmp_path):
    import sqlite3

    path = tmp_path / "future.db"
    five(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(GalleryCorruptError, match="format version; got 2; expected 1"):
        Gallery.open(path)


def test_a_journal_without_its_gallery(tmp_path):
    (tmp_path / "people.db-wal").write_bytes(b"left behind")
    with pytest.raises(GalleryCorruptError, match="journal"):
        Gallery.open(tmp_path / "people.db", **MODEL)


def test_the_file_is_set_for_power_cuts(tmp_path):
    with five(tmp_path / "people.db") as gallery:
        asked = ("journal_mode", "synchronous", "page_size", "foreign_keys", "secure_delete")
        found = [gallery._database._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in asked]
    assert found == ["wal", 2, 8192, 1, 1]


@pytest.mark.parametrize("by", ["identity", "entry_ids"])
def test_deleted_bytes_are_in_no_file(tmp_path, by):
    features = maps(60)
    with Gallery.open(tmp_path / "people.db", **MODEL) as gallery:
        ids = gallery.add_many(
            [f"Jane Doe {i}" for i in range(60)], features, [{"tag": f"secret{i:03d}"} for i in range(60)]
        )
        gallery.search(features[:1], 1)
        needles = [features[7].tobytes()[i : i + 64] for i in range(0, 512, 64)] + [b"Jane Doe 7\0", b"secret007"]

        def found():
            files = [file.read_bytes() for file in tmp_path.iterdir()]
            return [any(needle in file for file in files) for needle in needles]

        needles[-2] = b"Jane Doe 7"  # no other name begins so: 70 and more do not exist
        assert all(found())
        assert gallery.delete(**({"identity": "Jane Doe 7"} if by == "identity" else {"entry_ids": [ids[7]]})) == 1
        assert not any(found())
        gallery.add("someone", features[8])
        assert not any(found())
    assert not any(found())


def test_a_full_disk_refuses_and_changes_nothing(tmp_path):
    path = tmp_path / "people.db"
    with five(path) as gallery:
        writer = gallery._database._writer
        writer.execute(f"PRAGMA max_page_count = {writer.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(GalleryError, match="full") as refusal:
            gallery.add_many(["x"] * 500, maps(500))
        assert not isinstance(refusal.value, GalleryCorruptError)
        assert gallery.count == 5 and gallery.sequence == 5
        writer.execute("PRAGMA max_page_count = 100000")
        assert gallery.delete(entry_ids=gallery.add_many(["x"] * 50, maps(50))) == 50
    assert outcome(path) == 5


@contextmanager
def unprivileged():
    """Root may do everything: drop to nobody so that permissions mean something."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@posix
def test_a_read_only_folder():
    # Not tmp_path: its parents are closed to others.
    folder = Path(tempfile.mkdtemp())
    path = folder / "people.db"
    try:
        five(path).close()
        path.chmod(0o444)
        folder.chmod(0o555)
        with unprivileged():
            with pytest.raises(GalleryError, match="Fix:"):
                with Gallery.open(path, **MODEL) as gallery:
                    gallery.add("x", maps(1)[0])
            with pytest.raises(GalleryError, match="cannot be created"):
                Gallery.open(folder / "new.db", **MODEL)
            with Gallery.open(path, read_only=True, **MODEL) as reader:
                assert reader.search(maps(5), 1)[0].ravel().tolist() == [1, 2, 3, 4, 5]
        assert [file.name for file in folder.iterdir()] == ["people.db"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs two users, so root")
def test_a_reader_without_write_permission_follows_a_writer():
    folder = Path(tempfile.mkdtemp())
    path = folder / "people.db"
    try:
        five(path).close()
        path.chmod(0o644)
        folder.chmod(0o755)
        with unprivileged():
            reader = Gallery.open(path, read_only=True, **MODEL)
            assert reader.search(maps(1), 1)[0].tolist() == [[1]]
        with Gallery.open(path, **MODEL) as writer:
            writer.add("six", maps(1)[0] + 9)
            with unprivileged():
                assert reader.search(maps(1) + 9, 1)[0].tolist() == [[6]]
            writer.delete(entry_ids=[6])
            with unprivileged():
                assert reader.count == 5 and reader.search(maps(1), 9)[0].shape == (1, 5)
        reader.close()
    finally:
        shutil.rmtree(folder)


@posix
def test_a_fork_is_refused_in_the_child(tmp_path):
    with five(tmp_path / "people.db") as gallery:
        child = os.fork()
        if not child:
            try:
                gallery.search(maps(1), 1)
            except GalleryError as error:
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert gallery.count == 5
