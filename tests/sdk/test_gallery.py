"""The gallery's behaviour: exact search, identities, metadata, several processes and threads, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import unicodedata
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk.distance import METRICS, paired
from gaitsdk.errors import (
    EmptyGalleryError,
    GalleryCorruptError,
    GalleryError,
    GalleryLockedError,
    InputError,
    ModelMismatchError,
    OptionError,
    UnknownIdentityError,
)
from gaitsdk.gallery import Gallery, SqliteGallery, index, open_gallery
from gaitsdk.gallery.index import Snapshot

MODEL = {"fingerprint": "abc", "strips": 4, "dims": 8}


def maps(n, seed=0, strips=4, dims=8):
    return np.random.default_rng(seed).standard_normal((n, strips, dims)).astype(np.float32)


@pytest.fixture(params=["file", "memory"])
def gallery(request, tmp_path):
    with Gallery.open(":memory:" if request.param == "memory" else tmp_path / "people.db", **MODEL) as opened:
        yield opened


def brute(ids, features, probes, k, metric):
    """Every distance, a full sort by (distance, entry id)."""
    order = np.argsort(ids)
    ids, features = np.asarray(ids)[order], features[order]
    found_ids, found = [], []
    for probe in probes:
        distances = paired(np.broadcast_to(probe, features.shape), features, metric)
        first = np.argsort(distances, kind="stable")[:k]
        found_ids.append(ids[first])
        found.append(distances[first])
    return np.array(found_ids), np.array(found)


def test_round_trip_is_bit_identical(gallery):
    features = maps(5)
    features[0, 0, :4] = [-0.0, 1e-45, 1e17, -1e-30]
    ids = gallery.add_many(["a", "b", "a", "c", "b"], features, [{"n": i} for i in range(5)])
    assert ids == [1, 2, 3, 4, 5] and gallery.count == 5 and gallery.sequence == 1
    back = gallery.get([ids[3], ids[0], ids[3]])
    assert back.dtype == np.float32 and back.tobytes() == features[[3, 0, 3]].tobytes()
    assert gallery.identities() == ["a", "b", "c"]
    assert gallery.identity_of(np.array(ids)) == ["a", "b", "a", "c", "b"]
    assert gallery.metadata(ids[2]) == {"n": 2}
    one = gallery.add("d", features[0], camera="north", walk=[1, None, 2.5], ok=True)
    assert one == 6 and gallery.metadata(one) == {"camera": "north", "walk": [1, None, 2.5], "ok": True}
    assert gallery.get([]).shape == (0, 4, 8) and gallery.identity_of([]) == [] and gallery.add_many([], maps(0)) == []


def test_survives_closing(tmp_path):
    path = tmp_path / "people.db"
    features = maps(300)
    with Gallery.open(path, **MODEL) as gallery:
        gallery.add_many([f"p{i}" for i in range(300)], features)
        gallery.delete(entry_ids=[7])
        before = gallery.search(features[:3], 5)
    with Gallery.open(path) as again:
        assert (again.fingerprint, again.strips, again.dims, again.metric) == ("abc", 4, 8, "euclidean")
        assert again.count == 299 and again.sequence == 2
        for old, new in zip(before, again.search(features[:3], 5), strict=True):
            np.testing.assert_array_equal(old, new)
        assert again.add("new", features[0]) == 301  # ids go on
    assert [file.name for file in tmp_path.iterdir()] == ["people.db"]


def test_the_protocol(gallery):
    assert isinstance(gallery, Gallery) and isinstance(gallery, SqliteGallery)
    assert not isinstance(object(), Gallery)


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_search_is_exactly_brute_force(metric, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    strips, dims = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    offset, spread = data.draw(st.sampled_from([(0, 1), (50, 1), (50, 1e-3), (0, 1e-20), (0, 1e12)]))
    small = patch.object(index, "_SMALL_SCAN", data.draw(st.sampled_from([0, index._SMALL_SCAN])))
    with small, open_gallery(fingerprint="x", strips=strips, dims=dims, metric=metric) as gallery:
        kept = {}
        for _ in range(data.draw(st.integers(1, 4))):
            n = data.draw(st.integers(1, 150))
            batch = (rng.standard_normal((n, strips, dims)) * spread + offset).astype(np.float32)
            batch[rng.random(n) < 0.3] = batch[0]  # duplicates: ties
            batch[rng.random(n) < 0.05] = 0
            kept.update(zip(gallery.add_many(["p"] * n, batch), batch, strict=True))
            if data.draw(st.booleans()):
                gallery.search(batch[:1], 1)  # so that the index follows step by step
            gone = [entry for entry in kept if rng.random() < data.draw(st.sampled_from([0, 0.1, 0.8]))]
            assert gallery.delete(entry_ids=gone) == len(gone)
            for entry in gone:
                del kept[entry]
        probes = (rng.standard_normal((3, strips, dims)) * spread + offset).astype(np.float32)
        if not kept:
            with pytest.raises(EmptyGalleryError):
                gallery.search(probes, 1)
            return
        probes[1] = next(iter(kept.values()))
        k = data.draw(st.integers(1, len(kept) + 5))
        ids, distances = gallery.search(probes, k)
        expected_ids, expected = brute(list(kept), np.stack(list(kept.values())), probes, k, metric)
        assert ids.dtype == np.int64 and distances.dtype == np.float32
        assert ids.shape == (3, min(k, len(kept)))
        np.testing.assert_array_equal(distances, expected)
        np.testing.assert_array_equal(ids, expected_ids)


@pytest.mark.parametrize("small", [0, index._SMALL_SCAN])
def test_search_over_several_chunks_and_passes(monkeypatch, small):
    monkeypatch.setattr(index, "_SMALL_SCAN", small)
    features = maps(9000, strips=2, dims=4)
    with open_gallery(fingerprint="x", strips=2, dims=4) as gallery:
        ids = gallery.add_many(["p"] * 9000, features)
        gallery.delete(entry_ids=ids[100:200])
        living = np.r_[0:100, 200:9000]
        probes = maps(70, seed=1, strips=2, dims=4)
        found = gallery.search(probes, 7)
        expected = brute(np.array(ids)[living], features[living], probes, 7, "euclidean")
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        assert gallery.search(probes[:0], 7)[0].shape == (0, 7)


def test_a_search_among_few_leaves_the_cores_to_others():
    """OpenBLAS's threads spin on after a product; that of 1,000 entries is done without them."""
    with open_gallery(fingerprint="x", strips=16, dims=128) as gallery:
        gallery.add_many(["p"] * 1000, maps(1000, strips=16, dims=128))
        gallery.search(maps(1, strips=16, dims=128), 10)
        time.sleep(0.2)  # whatever enrolling and other tests left running ends
        gallery.search(maps(1, seed=1, strips=16, dims=128), 10)
        before = time.process_time()
        time.sleep(0.05)
        assert time.process_time() - before < 0.01


def test_delete(gallery):
    features = maps(200)
    ids = gallery.add_many([f"p{i % 4}" for i in range(200)], features)
    assert gallery.delete(identity="p1") == 50 and gallery.delete(identity="p1") == 0
    assert gallery.delete(entry_ids=[ids[0], ids[0], ids[1], 9999]) == 1
    assert gallery.identities() == ["p0", "p2", "p3"] and gallery.count == 149 and gallery.sequence == 3
    assert set(gallery.search(features[:1], 149)[0][0]) == set(ids) - set(ids[1::4]) - {ids[0]}
    for call in (gallery.get, gallery.identity_of):
        with pytest.raises(UnknownIdentityError, match="no such entry"):
            call([ids[4], ids[1]])
    assert gallery.delete(entry_ids=np.array(ids)) == 149 and gallery.count == 0 and gallery.identities() == []
    with pytest.raises(EmptyGalleryError):
        gallery.search(features[:1], 1)
    assert gallery.add("p1", features[0]) == 201
    for wrong in ({}, {"identity": "a", "entry_ids": [1]}):
        with pytest.raises(OptionError):
            gallery.delete(**wrong)


def test_room_of_the_deleted_is_given_back_one_chunk_at_a_time():
    features, probes = maps(1500), maps(3, 8)
    ids = np.arange(1, 1501)
    snapshot = Snapshot(*features.shape[1:], "euclidean")
    for part in np.split(np.arange(1500), 30):
        snapshot = snapshot.append(ids[part], ids[part], features[part])
    gone = np.random.default_rng(0).permutation(ids)[:1400]
    snapshot = snapshot.remove(gone)
    living = np.isin(ids, gone, invert=True)
    expected = brute(ids[living], features[living], probes, 9, "euclidean")
    steps = 0
    while True:
        for found, right in zip(snapshot.search(probes, 9), expected, strict=True):
            np.testing.assert_array_equal(found, right)
        tidier = snapshot.tidied()
        if tidier is snapshot:
            break
        snapshot, steps = tidier, steps + 1
    assert steps > 1 and snapshot.count == 100 and snapshot.digest == ids[living].sum()
    assert sum(view.length for view in snapshot.views) < 100 + 65 * len(snapshot.views)
    snapshot = snapshot.append(ids[-1:] + 1, ids[-1:], features[:1])
    assert 1501 in snapshot.search(features[:1], 2)[0]


def test_add_many_is_all_or_nothing(gallery):
    gallery.add("a", maps(1)[0])
    features = maps(3)
    for identities, metadata in ((["a", "", "b"], None), (["a", "b"], None), ("abc", None), (["a"] * 3, [{}])):
        with pytest.raises(InputError):
            gallery.add_many(identities, features, metadata)
    with pytest.raises(InputError, match=r"metadata\[2\]"):
        gallery.add_many(["x", "y", "z"], features, [{}, {}, {"bad": object()}])
    assert gallery.count == 1 and gallery.sequence == 1 and gallery.identities() == ["a"]


@pytest.mark.parametrize(
    "identity", ["", "  ", "\t", "a\x00b", "a\nb", "\x1b[31m", "\ud800", "a\u2028b", "x" * 257, None, 5, b"a", ["a"]]
)
def test_bad_identities_are_refused(gallery, identity):
    with pytest.raises(InputError, match="identit"):
        gallery.add(identity, maps(1)[0])
    with pytest.raises(InputError):
        gallery.add_many([identity], maps(1))
    assert gallery.count == 0


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        (" Ann", "white space before or after"),
        ("Ann\u00a0", "white space before or after"),
        ("An\u200bn", "invisible format characters; got U\\+200B"),
        ("\u202eAnn", "U\\+202E"),
        ("\ufeffAnn", "U\\+FEFF"),
    ],
)
def test_names_that_look_like_another_are_refused(gallery, identity, says):
    with pytest.raises(InputError, match=says):
        gallery.add(identity, maps(1)[0])
    assert gallery.count == 0


def test_identities_are_text_and_nothing_else(gallery):
    names = ["../etc/passwd", "x" * 256, "'; DROP TABLE entries; --", "Zoë 🚶", "%s", "two  words"]
    gallery.add_many(names, maps(len(names)))
    assert gallery.identities() == sorted(names)
    assert gallery.delete(identity=names[2]) == 1


def test_unicode_forms_are_one_person_and_the_first_spelling_stays(gallery):
    composed, decomposed = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))
    ids = gallery.add_many([decomposed, composed, decomposed], maps(3))
    assert gallery.identities() == [decomposed] and gallery.identity_of(ids) == [decomposed] * 3
    assert gallery.delete(identity=composed) == 3


@pytest.mark.parametrize(
    "metadata", [{"x": float("nan")}, {"x": object()}, {"x": b"1"}, {"x": "y" * 70_000}, {"x": {1, 2}}]
)
def test_bad_metadata_is_refused(gallery, metadata):
    with pytest.raises(InputError, match="metadata"):
        gallery.add("a", maps(1)[0], **metadata)
    assert gallery.count == 0


def test_bad_features_and_options_are_refused(gallery):
    good = maps(2)
    gallery.add_many(["a", "b"], good)
    for bad in (good[0], good[:, :3], good[..., :5], good * np.nan, good.astype(np.int32), None, [], "x"):
        with pytest.raises(InputError):
            gallery.search(bad, 1)
        with pytest.raises(InputError):
            gallery.add_many(["a", "b"], bad)
    with pytest.raises(InputError):
        gallery.add("a", good)
    for k in (0, -1, True, 1.0, "1", None):
        with pytest.raises(OptionError, match="k"):
            gallery.search(good, k)
    for ids in ([1.0], [True], "a", [[1]], [2**64]):
        with pytest.raises(InputError):
            gallery.get(ids)
    assert gallery.count == 2


def test_other_models_are_refused(tmp_path):
    path = tmp_path / "people.db"
    Gallery.open(path, **MODEL).close()
    for changed in ({"fingerprint": "other"}, {"strips": 5}, {"dims": 9}, {"metric": "cosine"}):
        (name, value), *_ = changed.items()
        with pytest.raises(ModelMismatchError) as refusal:
            Gallery.open(path, **{**MODEL, **changed})
        message = str(refusal.value)
        assert str(value) in message and str(MODEL.get(name, "euclidean")) in message and "Fix:" in message


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fingerprint": "a", "strips": 4},
        {**MODEL, "strips": 0},
        {**MODEL, "dims": True},
        {**MODEL, "metric": "x"},
        {**MODEL, "fingerprint": ""},
        {**MODEL, "timeout": -1},
        {**MODEL, "timeout": float("nan")},
    ],
)
def test_bad_options_are_refused(tmp_path, options):
    with pytest.raises(OptionError):
        Gallery.open(tmp_path / "new.db", **options)
    assert not list(tmp_path.iterdir())


def test_paths(tmp_path):
    with pytest.raises(OptionError, match="URI"):
        Gallery.open("redis://localhost", **MODEL)
    with pytest.raises(GalleryError, match="no gallery there"):
        Gallery.open(tmp_path / "none.db", create=False, **MODEL)
    with pytest.raises(GalleryError, match="no gallery there"):
        Gallery.open(tmp_path / "none.db", read_only=True, **MODEL)
    with pytest.raises(GalleryError, match="folder"):
        Gallery.open(tmp_path, **MODEL)
    with pytest.raises(GalleryError, match="does not exist"):
        Gallery.open(tmp_path / "no" / "people.db", **MODEL)
    odd = tmp_path / "a b?c#d%20.db"
    Gallery.open(f"sqlite:///{odd}", **MODEL).close()
    assert [file.name for file in tmp_path.iterdir()] == [odd.name]
    assert odd.stat().st_mode & 0o077 == 0  # features are personal data


def test_read_only_and_closed(tmp_path):
    path = tmp_path / "people.db"
    features = maps(3)
    with Gallery.open(path, **MODEL) as gallery:
        gallery.add_many(["a", "b", "c"], features)
        with Gallery.open(path, read_only=True) as reader:
            assert reader.search(features[1:2], 1)[0].tolist() == [[2]]
            gallery.add("d", features[0] + 1)
            assert reader.search(features[:1] + 1, 1)[0].tolist() == [[4]]
            for write in (lambda: reader.add("x", features[0]), lambda: reader.delete(identity="a")):
                with pytest.raises(GalleryError, match="read-only"):
                    write()
    gallery.close()
    for call in (lambda: gallery.count, lambda: gallery.search(features, 1), lambda: gallery.add("x", features[0])):
        with pytest.raises(GalleryError, match="closed"):
            call()


CHILD = """
import json, sys
import numpy as np
from gaitsdk.gallery import Gallery
with Gallery.open(sys.argv[1], fingerprint="abc") as gallery:
    for line in sys.stdin:
        verb, seed = json.loads(line)
        features = np.random.default_rng(seed).standard_normal((1, 4, 8)).astype(np.float32)
        if verb == "add":
            print(gallery.add(f"child{seed}", features[0]), flush=True)
        elif verb == "delete":
            print(gallery.delete(identity=f"child{seed}"), flush=True)
        else:
            print(json.dumps(gallery.search(features, 1)[0].tolist()), flush=True)
"""


def test_another_process_sees_entries_and_deletions_at_once(tmp_path):
    path = tmp_path / "people.db"
    with Gallery.open(path, **MODEL) as gallery:
        command = [sys.executable, "-c", CHILD, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:

            def ask(verb, seed):
                child.stdin.write(json.dumps([verb, seed]) + "\n")
                child.stdin.flush()
                return json.loads(child.stdout.readline())

            gallery.add("far", maps(1)[0] + 100)
            for seed in range(10):
                entry = ask("add", seed)
                probe = maps(1, seed)
                ids, distances = gallery.search(probe, 1)
                assert ids[0, 0] == entry and distances[0, 0] == 0
                assert gallery.identity_of(ids[0]) == [f"child{seed}"] and gallery.sequence == 2 * seed + 2
                mine = gallery.add("parent", maps(1, seed + 1000)[0])
                assert ask("search", seed + 1000) == [[mine]]
            assert ask("delete", 3) == 1
            assert gallery.search(maps(1, 3), 1)[1][0, 0] > 0 and "child3" not in gallery.identities()
            gallery.delete(entry_ids=[mine])
            assert ask("search", 1009) != [[mine]]
            child.stdin.close()


def test_writers_wait_then_raise(tmp_path):
    path = tmp_path / "people.db"
    with Gallery.open(path, **MODEL) as holder, Gallery.open(path, timeout=0.1, **MODEL) as other:
        with holder._database.writing(), pytest.raises(GalleryLockedError) as refusal:
            other.add("a", maps(1)[0])
        assert refusal.value.retryable and other.count == 0
        assert other.add("a", maps(1)[0]) == 1


@pytest.mark.parametrize("where", ["file", ":memory:"])
def test_threads_search_while_others_enrol_and_delete(tmp_path, where):
    base = maps(100)
    errors, done = [], threading.Event()

    def search(gallery):
        try:
            while not done.is_set():
                ids, distances = gallery.search(base[:4], 3)
                # The first 100 entries never change: each finds itself, whatever else goes on.
                assert ids[:, 0].tolist() == [1, 2, 3, 4] and not distances[:, 0].any()
                assert gallery.get(ids[:, 0]).tobytes() == base[:4].tobytes()
        except (GalleryError, AssertionError) as error:
            errors.append(error)

    def write(gallery, seed):
        try:
            for i in range(40):
                ids = gallery.add_many([f"w{seed}"] * 5, maps(5, seed * 100 + i) + 3)
                if i % 3 == 0:
                    gallery.delete(entry_ids=ids[:4])
        except (GalleryError, AssertionError) as error:
            errors.append(error)

    with Gallery.open(tmp_path / "people.db" if where == "file" else where, timeout=30, **MODEL) as gallery:
        gallery.add_many([f"p{i}" for i in range(100)], base)
        readers = [threading.Thread(target=search, args=(gallery,)) for _ in range(3)]
        writers = [threading.Thread(target=write, args=(gallery, seed)) for seed in (1, 2)]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert not errors
        left = 100 + 2 * (40 * 5 - 14 * 4)
        assert gallery.count == left and gallery.search(base[:1], 10_000)[0].shape == (1, left)


def test_not_a_gallery(tmp_path):
    import sqlite3

    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(GalleryCorruptError, match="not a gallery"):
        Gallery.open(path, **MODEL)
    assert path.read_bytes() == before
    (tmp_path / "empty.db").touch()
    with pytest.raises(GalleryCorruptError, match="empty file"):
        Gallery.open(tmp_path / "empty.db", **MODEL)
