"""Training data from trees: every kind of file, broken ones, official splits."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import synthetic
from gaitsdk.datasets import Partition, SequenceTree
from gaitsdk.errors import DatasetError, OptionError
from gaitsdk_training.data import from_tree, public_dataset


def walkers(root: Path, identities: list[str], kinds: list[str], views: list[str]) -> None:
    """A tree of these names, each sequence 8 frames of the same walker."""
    frames = synthetic.sequence(1, "nm-01", "090", frames=8)
    for identity in identities:
        for kind in kinds:
            for view in views:
                folder = root / identity / kind / view
                folder.mkdir(parents=True)
                np.save(folder / f"{view}.npy", frames)


def test_a_tree_gives_the_same_sequences(tmp_path: Path) -> None:
    synthetic.write_casiab(tmp_path, [1, 2, 3], types=("nm-01", "bg-01"), views=("000", "090"), frames=8)
    data = from_tree(tmp_path, identities=["001", "003"], types=["bg-01"])
    assert data.identities.tolist() == ["001", "001", "003", "003"] and set(data.types.tolist()) == {"bg-01"}
    np.testing.assert_array_equal(data[1], synthetic.sequence(1, "bg-01", "090", frames=8))
    with pytest.raises(DatasetError, match="no usable sequence"):
        from_tree(tmp_path, identities=["077"])
    with pytest.raises(DatasetError, match="cl-07"):
        from_tree(tmp_path, types=["cl-07"])


def test_people_of_a_partition_who_are_not_there_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthetic.write_casiab(tmp_path, [1], types=("nm-01",), views=("000", "090"), frames=8)
    assert from_tree(tmp_path, identities=["001", "005"]).classes == ["001"]
    assert "1 of 2" in caplog.text and "005" in caplog.text


def test_a_tree_leaves_out_what_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthetic.write_casiab(tmp_path, [1], types=("nm-01",), views=("000", "090"), frames=8)
    with (tmp_path / "001" / "nm-01" / "000" / "000.pkl").open("wb") as file:
        pickle.dump(np.zeros((8, 64, 64), np.uint8), file, protocol=4)
    data = from_tree(tmp_path)
    assert data.views.tolist() == ["090"]
    assert "001/nm-01/000" in caplog.text


def test_a_tree_of_every_kind_of_file(tmp_path: Path) -> None:
    from PIL import Image

    frames = synthetic.sequence(1, "nm-01", "090", frames=12)
    for view in ("000", "018", "036", "054", "072"):
        (tmp_path / "001" / "nm-01" / view).mkdir(parents=True)
    of = {view: tmp_path / "001" / "nm-01" / view for view in ("000", "018", "036", "054", "072")}
    (of["000"] / "000.pkl").write_bytes(pickle.dumps(frames, protocol=4))
    np.save(of["018"] / "018.npy", frames)
    np.savez(of["036"] / "036.npz", frames)
    np.savez_compressed(of["054"] / "054.npz", ratios=np.zeros(12), silhouettes=frames)
    for index, frame in enumerate(frames):  # 12 frames: 10.png comes after 9.png
        Image.fromarray(frame).save(of["072"] / f"{index}.png")
    data = from_tree(tmp_path)
    assert len(data) == 5 and data.report is not None and not data.report.skipped
    for sequence in data.sequences:
        np.testing.assert_array_equal(sequence, frames)


def broken_tree(root: Path) -> dict[str, str]:
    """Two good sequences of 001 and, for 002, one of every way to be broken; gives path -> what its reason says."""
    walkers(root, ["001"], ["nm-01"], ["000", "090"])
    good = synthetic.sequence(1, "nm-01", "090", frames=8)
    found: dict[str, str] = {}

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    whole, objects = pickle.dumps(good, protocol=4), np.array([{"a": 1}, None], dtype=object)
    for view, name, contents, reason in (
        ("000", "a.pkl", b"", "damaged or no pickle"),
        ("018", "b.pkl", whole[:-100], "damaged or no pickle"),
        ("036", "c.pkl", pickle.dumps(Evil()), "refused"),
        ("054", "d.npy", b"", "cannot be used"),
        ("072", "e.npz", b"PK not an archive", "cannot be used"),
        ("090", "f.png", b"no image", "not an image"),
        ("108", "g.npy", good * np.float32("nan"), "NaN or infinite"),
        ("126", "h.npy", np.zeros((0, 64, 64), np.uint8), "no frame"),
        ("144", "i.npy", np.zeros((8, 64, 64), np.uint8), "frame"),
        ("162", "j.npz", {"x": good, "y": good}, "cannot be used"),
        ("180", "k.npz", {"x": objects}, "cannot be used"),
    ):
        path = root / "002" / "nm-01" / view / name
        path.parent.mkdir(parents=True)
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        elif isinstance(contents, dict):
            np.savez(path, **contents)
        else:
            np.save(path, contents)
        found[str(path.parent if name.endswith("png") else path)] = reason
    (root / "002" / "nm-01" / "999").mkdir()
    found[str(root / "002" / "nm-01" / "999")] = "no data"
    return found


def test_broken_files_are_skipped_and_reported_by_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = broken_tree(tmp_path)
    data = from_tree(tmp_path, identities=["001", "002"])
    assert data.identities.tolist() == ["001", "001"]
    report = data.report
    assert report is not None and report.loaded == 2 and report.absent == ("002",) and report.wanted == 2
    assert {each.path for each in report.skipped} == set(broken)
    for each in report.skipped:
        assert broken[each.path] in each.reason
        assert each.path in caplog.text or each.path.endswith("999")
    assert "2 sequences, 12 skipped" in report.summary() and "1 of 2 wanted identities" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["skipped"][0]["path"] in broken
    assert "executed" not in capsys.readouterr().out
    assert data.subset([0]).report is report


def test_nothing_but_broken_files_is_an_error(tmp_path: Path) -> None:
    broken_tree(tmp_path)
    with pytest.raises(
        DatasetError, match=r"no usable sequence; got 11 sequences .* all of them unusable .*999"
    ) as caught:
        from_tree(tmp_path, identities=["002"])
    assert "write the files again" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "identities", "kind", "view", "train", "test"),
    [
        ("casiab", ["001", "074", "075", "124"], "bg-02", "018", ["001", "074"], ["075", "124"]),
        ("oumvlp", ["00001", "00002", "10305", "10307"], "01", "255", ["00001", "10305"], ["00002", "10307"]),
        ("grew", ["1train", "20000train", "00001", "probe"], "00", "79XJefi8", ["20000train"], ["00001", "probe"]),
    ],
)
def test_official_splits(
    tmp_path: Path, name: str, identities: list[str], kind: str, view: str, train: list[str], test: list[str]
) -> None:
    walkers(tmp_path, identities, [kind], [view])
    assert from_tree(tmp_path, dataset=name).classes == train
    assert from_tree(tmp_path, dataset=name, part="test").classes == test
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"TRAIN_SET": identities[2:], "TEST_SET": identities[:2]}))
    assert from_tree(tmp_path, dataset=name, partition=file).classes == sorted(identities[2:])  # the list decides


@pytest.mark.parametrize(
    ("name", "identities"),
    [
        ("casiab", [f"{number:03d}" for number in range(1, 125)]),
        ("oumvlp", [f"{number:05d}" for number in range(1, 10308)]),
        ("grew", [f"{n:05d}train" for n in range(1, 20001)] + [f"{n:05d}" for n in range(1, 6001)] + ["probe"]),
    ],
)
def test_official_splits_have_the_official_sizes(name: str, identities: list[str]) -> None:
    described = public_dataset(name)
    split = described.split([*identities, "stranger"])
    assert (len(split.train), len(split.test)) == (described.train, described.test)
    assert not set(split.train) & set(split.test)
    assert set(split.train) | set(split.test) == set(identities)


def test_gait3d_needs_its_list(tmp_path: Path) -> None:
    walkers(tmp_path, ["0000", "0001"], ["camid0_videoid2", "camid9_videoid1"], ["seq0"])
    with pytest.raises(DatasetError, match=r"gait3d is split by a list.*Gait3D\.json"):
        from_tree(tmp_path, dataset="gait3d")
    listed = {"TRAIN_SET": ["0000"], "TEST_SET": ["0001", "0777"], "PROBE_SET": ["0001-camid9_videoid1-seq0"]}
    file = tmp_path / "Gait3D.json"
    file.write_text(json.dumps(listed))
    data = from_tree(tmp_path, dataset="gait3d", partition=file, part="test")
    assert data.classes == ["0001"] and data.report is not None and data.report.absent == ("0777",)


def test_splits_that_do_not_fit_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    walkers(tmp_path, ["001", "080", "777"], ["nm-01"], ["090"])
    with pytest.raises(OptionError, match="casiab, gait3d, grew, oumvlp"):
        from_tree(tmp_path, dataset="casia")
    with pytest.raises(OptionError, match="part"):
        from_tree(tmp_path, dataset="casiab", part="validation")
    with pytest.raises(OptionError, match="no split"):
        from_tree(tmp_path, part="test")
    with pytest.raises(OptionError, match="one or the other"):
        from_tree(tmp_path, dataset="casiab", identities=["001"])
    with pytest.raises(DatasetError, match="not named as in oumvlp; got 001"):
        from_tree(tmp_path, dataset="oumvlp")
    caplog.set_level(logging.WARNING)
    assert from_tree(tmp_path, dataset="casiab").classes == ["001"]
    assert "1 identities are in neither part of the split: 777" in caplog.text
    assert "1 of the 74 official train identities are there" in caplog.text
    strangers = Partition(("901", "902"), ("903",))
    with pytest.raises(DatasetError, match=r"no usable sequence.*named as its folders are"):
        from_tree(tmp_path, partition=strangers)
    assert len(SequenceTree(tmp_path)) == 3
