"""Trees on disk: what is found, in which order, and what a wrong tree says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gaitsdk.datasets import Partition, SequenceRef, SequenceTree
from gaitsdk.errors import DatasetError, InputError, SilhouetteShapeError, SilhouetteValueError


def silhouettes(seed: int = 0, frames: int = 4) -> np.ndarray:
    """uint8 [frames, 8, 6] in {0, 255}, with both values."""
    values = np.random.default_rng(seed).integers(0, 2, (frames, 8, 6)).astype(np.uint8) * 255
    values[:, 0, 0] = 255
    return values


def put(folder: Path, name: str, array: Any) -> Path:
    """An array as `folder/name`, by its suffix; for .png a folder of frames."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        from PIL import Image

        for index, frame in enumerate(array):
            Image.fromarray(frame).save(folder / f"{path.stem}-{index}.png")
    else:
        path.write_bytes(pickle.dumps(array))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """2 identities x 2 types x 2 views, written in an order that is not the sorted one, in all three forms."""
    root = tmp_path / "tree"
    for identity in ("010", "002"):
        for kind in ("nm-02", "cl-01"):
            put(root / identity / kind / "090", "090.pkl", silhouettes(1))
            stored = ("x.npy", silhouettes(2)) if kind == "cl-01" else ("f.png", silhouettes(3, 12))
            put(root / identity / kind / "018", *stored)
    return root


def keys(tree: SequenceTree) -> list[tuple[str, str, str]]:
    return [(ref.identity, ref.type, ref.view) for ref in tree]


def test_order_and_contents(root: Path) -> None:
    tree = SequenceTree(root)
    expected = [(i, t, v) for i in ("002", "010") for t in ("cl-01", "nm-02") for v in ("018", "090")]
    assert keys(tree) == keys(SequenceTree(str(root))) == expected == sorted(expected)
    assert len(tree) == 8
    assert tree.identities == ("002", "010")
    assert tree.types == ("cl-01", "nm-02")
    assert tree.views == ("018", "090")
    assert tree.skipped == ()
    assert tree[0] == SequenceRef("002", "cl-01", "018", root / "002" / "cl-01" / "018")
    assert list(tree) == list(tree)  # may be iterated again
    assert "8 sequences of 2 identities" in repr(tree)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree[0].view = "090"  # type: ignore[misc]
    for ref in tree:
        seed, frames = (1, 4) if ref.view == "090" else (2, 4) if ref.type == "cl-01" else (3, 12)
        loaded = ref.load()
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, silhouettes(seed, frames))  # 12 frames: f-10.png comes after f-9.png


def test_other_kinds_of_arrays(tmp_path: Path) -> None:
    stored = silhouettes()
    put(tmp_path / "a" / "t" / "v0", "x.pkl", stored > 0)
    put(tmp_path / "a" / "t" / "v1", "x.NPY", stored // 255)
    (tmp_path / "a" / "t" / "v1" / "x.NPY").write_bytes(put(tmp_path / "other", "x.npy", stored // 255).read_bytes())
    put(tmp_path / "a" / "t" / "v2", "x.pkl", list(stored))
    (tmp_path / "other" / "x.npy").unlink()
    for ref in SequenceTree(tmp_path, identities=["a"]):
        assert np.array_equal(ref.load(), stored)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["090.pkl"], "090.pkl"),
        (["0_heatmap.pkl", "1_sil.pkl"], "1_sil.pkl"),
        (["a-ratios.pkl", "b-Silhouettes.npy", "c-rgbs.pkl"], "b-Silhouettes.npy"),
        (["090-aligned-sils.pkl", "090-ratios.pkl", "090-rgbs.pkl", "090-sils.pkl"], "090-aligned-sils.pkl"),
        (["._090.pkl", ".DS_Store", "090.pkl", "notes.txt"], "090.pkl"),
        (["090.pkl", "090.npy"], None),
        (["pose.pkl", "rgb.pkl"], None),
        (["sil-a.pkl", "sil-b.pkl"], None),
        (["aligned-a-sil.pkl", "aligned-b-sil.pkl"], None),
        (["090.pkl", "frame.png"], None),
    ],
)
def test_several_files_in_a_folder(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    folder = tmp_path / "001" / "nm-01" / "090"
    for name in names:
        put(folder, name, silhouettes() if name == chosen else silhouettes(9))
    if chosen is not None:
        (ref,) = SequenceTree(tmp_path)
        assert ref.file() == folder / chosen
        assert np.array_equal(ref.load(), silhouettes())
        return
    with pytest.raises(DatasetError, match="which file holds the silhouettes is not clear") as caught:
        SequenceTree(tmp_path)
    message = str(caught.value)
    assert str(folder) in message
    assert all(name in message for name in names if name != "frame.png")
    assert "'sil' in its name" in message


def test_filters(root: Path) -> None:
    assert keys(SequenceTree(root, identities=["010"], types={"nm-02"}, views=iter(["090", "018"]))) == [
        ("010", "nm-02", "018"),
        ("010", "nm-02", "090"),
    ]
    assert len(SequenceTree(root, views=("018",))) == 4


def test_part_of_a_filter_is_absent(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gaitsdk.datasets"):
        assert len(SequenceTree(root, identities=["002", "777"])) == 4
    assert "identities that are not there: 777" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "got", "expected"),
    [
        ({"identities": ["2"]}, "these identities; got 2", "some of 002, 010"),
        ({"types": ["nm-01", "bg-01"]}, "these types; got bg-01, nm-01", "some of cl-01, nm-02"),
        ({"views": ["90"]}, "these views; got 90", "some of 018, 090"),
        ({"identities": ["002"], "types": ["nm-02"], "views": ["036"]}, "these views; got 036", "some of 018, 090"),
        ({"identities": []}, "these identities; got an empty choice", "some of 002, 010"),
    ],
)
def test_a_filter_that_matches_nothing(root: Path, wanted: dict[str, Any], got: str, expected: str) -> None:
    with pytest.raises(DatasetError) as caught:
        SequenceTree(root, **wanted)
    for part in (str(root), got, expected, "Fix: "):
        assert part in str(caught.value)


def test_the_list_of_what_there_is_stays_short(tmp_path: Path) -> None:
    for index in range(60):
        put(tmp_path / f"{index:03}" / "nm-01" / "090", "x.npy", silhouettes())
    with pytest.raises(DatasetError, match=r"some of 000, 001, .*, 007, \.\.\. \(60 in all\)") as caught:
        SequenceTree(tmp_path, identities=[f"x{index}" for index in range(500)])
    assert len(str(caught.value)) < 600


def test_combined_filters_whose_folders_are_empty(root: Path) -> None:
    (root / "002" / "bg-01" / "000").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"what matches holds no data.*an empty folder"):
        SequenceTree(root, types=["bg-01"])


@pytest.mark.parametrize("value", ["002", b"002", [2], 2, [None]])
def test_a_filter_that_is_none(root: Path, value: Any) -> None:
    with pytest.raises(InputError, match="identities: not a collection of names"):
        SequenceTree(root, identities=value)


def test_missing_and_wrong_roots(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no such folder.*Fix: check the path"):
        SequenceTree(tmp_path / "none")
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        SequenceTree(root / "002" / "nm-02" / "090" / "090.pkl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="the tree holds no data; got an empty folder; expected <root>/<identity>"):
        SequenceTree(tmp_path / "empty")
    (tmp_path / "empty" / "readme.txt").touch()
    with pytest.raises(DatasetError, match=r"got readme\.txt, but no such file"):
        SequenceTree(tmp_path / "empty")
    (tmp_path / "empty" / "001" / "nm-01" / "090").mkdir(parents=True)
    with pytest.raises(DatasetError, match="the tree holds no data"):
        SequenceTree(tmp_path / "empty")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_root_that_is_too_deep(root: Path, depth: int) -> None:
    inside = root.joinpath(*("002", "nm-02", "090")[: 3 - depth])
    with pytest.raises(DatasetError, match=f"wrong depth; got data {depth} folders below the root") as caught:
        SequenceTree(inside)
    assert "expected 3: <root>/<identity>/<type>/<view>/" in str(caught.value)
    assert f"Fix: pass {root.resolve()} if" in str(caught.value)
    assert len(SequenceTree(root)) == 8


@pytest.mark.parametrize("depth", [0, 1])
def test_no_folder_is_suggested_that_is_no_root(tmp_path: Path, depth: int) -> None:
    flat = tmp_path / "home" / "someone" / "data" / "walks"
    put(flat.joinpath(*["a"][:depth]), "x.npy", silhouettes())
    (tmp_path / "home" / "another" / "mail").mkdir(parents=True)
    (tmp_path / "home" / "someone" / "mail" / "new").mkdir(parents=True)
    with pytest.raises(DatasetError, match="wrong depth") as caught:
        SequenceTree(flat)
    assert str(caught.value).endswith("Fix: put the data into such folders")


def test_jpeg_files_are_a_sequence_unless_they_lie_beside_data(tmp_path: Path) -> None:
    from PIL import Image

    for view in ("000", "090", "180"):
        folder = tmp_path / "001" / "nm-01" / view
        folder.mkdir(parents=True)
        for index, frame in enumerate(silhouettes()):
            Image.fromarray(frame).save(folder / f"{index}.jpg")
    put(tmp_path / "001" / "nm-01" / "090", "x.npy", silhouettes())
    put(tmp_path / "001" / "nm-01" / "180", "x.png", silhouettes(2))
    first, second, third = SequenceTree(tmp_path)
    assert first.file() == first.path and first.load().shape == (4, 8, 6)
    assert second.file().name == "x.npy"
    assert np.array_equal(third.load(), silhouettes(2))


@pytest.mark.parametrize("above", [1, 2])
@pytest.mark.parametrize("wanted", [None, ["002"]])
def test_a_root_that_is_too_high(tmp_path: Path, above: int, wanted: list[str] | None) -> None:
    folder = tmp_path / "outer" / "middle"
    put(folder / "002" / "nm-01" / "090", "090.pkl", silhouettes())
    top = (tmp_path / "outer", tmp_path)[above - 1]
    with pytest.raises(DatasetError, match=f"wrong depth; got data {3 + above} folders below the root") as caught:
        SequenceTree(top, identities=wanted)
    assert f"Fix: pass {folder}" in str(caught.value)
    assert len(SequenceTree(folder, identities=wanted)) == 1


def test_what_is_left_out_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "002" / "bg-01" / "000").mkdir(parents=True)
    (root / "003").mkdir()
    put(root / "010" / "cl-01", "stray.npy", silhouettes())
    put(root / "010" / "cl-01" / "180" / "deep", "x.npy", silhouettes())
    (root / ".cache" / "a" / "b").mkdir(parents=True)
    (root / "partition.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "gaitsdk.datasets"):
        tree = SequenceTree(root)
    assert len(tree) == 8
    reasons = {line.removeprefix(str(root)).split(":")[0][1:]: line.split(": ")[1] for line in tree.skipped}
    assert reasons == {
        "002/bg-01/000": "no data (an empty folder)",
        "003": "no folder in it",
        "010/cl-01/stray.npy": "a data file at the wrong depth (1 in this folder)",
        "010/cl-01/180": "folders instead of data",
    }
    assert "4 left out" in caplog.text


@pytest.mark.parametrize("name", ["x.pkl", "x.npy", "x.png"])
@pytest.mark.parametrize("contents", [b"", b"not what the suffix says", None])
def test_unreadable_files(tmp_path: Path, name: str, contents: bytes | None) -> None:
    folder = tmp_path / "001" / "nm-01" / "090"
    put(folder, name, silhouettes())
    path = folder / ("x-2.png" if name == "x.png" else name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 40] if contents is None else contents)
    (ref,) = SequenceTree(tmp_path)  # names only: nothing was read
    with pytest.raises(DatasetError) as caught:
        ref.load()
    assert str(folder) in str(caught.value)
    assert path.name in str(caught.value)


def test_files_that_went_away(root: Path) -> None:
    refs = list(SequenceTree(root, identities=["002"], views=["090"]))
    refs[0].path.joinpath("090.pkl").unlink()
    with pytest.raises(DatasetError, match="the folder holds no sequence; got an empty folder"):
        refs[0].load()
    refs[0].path.rmdir()
    with pytest.raises(DatasetError, match="the folder cannot be read; got No such file or directory"):
        refs[0].load()


def test_files_that_are_no_silhouettes(tmp_path: Path) -> None:
    put(tmp_path / "001" / "nm-01" / "000", "x.pkl", np.zeros((3, 2, 64, 44), np.uint8))
    put(tmp_path / "001" / "nm-01" / "018", "x.npy", np.full((3, 8, 6), np.nan))
    four, nan = SequenceTree(tmp_path)
    with pytest.raises(SilhouetteShapeError, match=r"000.x\.pkl"):
        four.load()
    with pytest.raises(SilhouetteValueError, match=r"018.x\.npy"):
        nan.load()


def test_pickles_of_a_tree_run_nothing(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    put(tmp_path / "tree" / "001" / "nm-01" / "090", "090.pkl", Touch())
    (ref,) = SequenceTree(tmp_path / "tree")
    with pytest.raises(DatasetError, match=r"refused: .*\.system"):
        ref.load()
    assert not (tmp_path / "canary").exists()


def test_a_folder_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "nm-02":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"nm-02: the folder cannot be read; got Permission denied"):
        SequenceTree(root)


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    try:
        (tmp_path / "linked" / "002").symlink_to(root / "002", target_is_directory=True)
        (tmp_path / "linked" / "loop").symlink_to(tmp_path / "linked", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert len(SequenceTree(tmp_path / "linked", identities=["002"])) == 4


@pytest.fixture(scope="module")
def unpack(shared_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("unpack_cmu_walks", shared_dir / "data" / "cmu_walks" / "unpack.py")
    if spec is None or spec.loader is None or not Path(str(spec.origin)).exists():
        pytest.skip("the reference data have no cmu_walks")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_walks(unpack: ModuleType, shared_dir: Path, tmp_path: Path) -> None:
    names, sequences, _ = unpack.load(shared_dir / "data" / "cmu_walks" / "cmu_walks.npz")
    chosen = dict(list(zip(names, sequences, strict=True))[::70])
    for place, (name, sequence) in enumerate(chosen.items()):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.pkl").write_bytes(pickle.dumps(sequence, protocol=place % 6))
    tree = SequenceTree(tmp_path)
    assert keys(tree) == sorted(tuple(name.split("/")) for name in chosen)
    assert len(tree) >= 10
    assert tree.identities == tuple(sorted({name.split("/")[0] for name in chosen}))
    for ref in tree:
        expected = chosen[f"{ref.identity}/{ref.type}/{ref.view}"]
        assert expected.shape[1:] == (64, 64)
        assert np.array_equal(ref.load(), expected)


def test_partition(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"TRAIN_SET": ["002"], "TEST_SET": ["001", "003"], "PROBE_SET": ["001-nm-01-090"]}))
    assert Partition.read(path) == Partition(("002",), ("001", "003"), ("001-nm-01-090",))
    path.write_text(json.dumps({"TRAIN_SET": ["002"], "TEST_SET": []}))
    assert Partition.read(str(path)) == Partition(("002",), (), ())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "no partition; got no object"),
        ('{"TRAIN_SET": []}', "no partition; got the keys TRAIN_SET"),
        ('{"TRAIN_SET": "001", "TEST_SET": []}', "TRAIN_SET: not a list of names"),
        ('{"TRAIN_SET": [], "TEST_SET": [1]}', "TEST_SET: not a list of names"),
        ('{"TRAIN_SET": ["001"], "TEST_SET": ["001"]}', "both in training and test; got 001"),
    ],
)
def test_unusable_partitions(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=says):
        Partition.read(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        Partition.read(tmp_path / "none.json")
