"""Maps of a walk from several files: joined by their names, refused by their path."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import synthetic
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import (
    DatasetError,
    GaitError,
    NoFramesError,
    SilhouetteShapeError,
    SilhouetteValueError,
    TooFewFramesError,
)
from gaitsdk.maps import join_maps, name_maps, read_maps
from gaitsdk.silhouettes import prepare, skeleton_maps, stack_maps

FRAMES = 8
WALK = synthetic.sequence(3, frames=FRAMES)
_BODY = np.array([
    (200, 100), (203, 97), (197, 97), (207, 99), (193, 99), (220, 130), (180, 130), (228, 165), (172, 165),
    (230, 195), (170, 195), (212, 200), (188, 200), (215, 260), (185, 260), (218, 320), (182, 320),
], np.float64)  # fmt: skip
POINTS = np.concatenate(
    [_BODY + np.random.default_rng(1).normal(0, 3, (FRAMES, 17, 2)), np.full((FRAMES, 17, 1), 0.9)], axis=2
)
HEATMAP = skeleton_maps(POINTS)
STACKED = stack_maps(limbs=HEATMAP[:, 0], joints=HEATMAP[:, 1], silhouettes=WALK)


def write(folder: Path, **arrays: np.ndarray) -> Path:
    """Each array under its name, as .pkl or, where the name says so, as .npy."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if name.endswith("_npy"):
            np.save(folder / f"{name.removesuffix('_npy')}.npy", array)
        else:
            (folder / f"{name}.pkl").write_bytes(pickle.dumps(array, protocol=4))
    return folder


def images(folder: Path, frames: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")


FORMS: dict[str, Callable[[Path], object]] = {
    "the field's names": lambda f: write(f, **{"0_heatmap": HEATMAP, "1_sil": WALK}),
    "in the other order": lambda f: write(f, **{"9_heatmap": HEATMAP, "0_sil": WALK}),
    "cut to 44 columns": lambda f: write(f, heatmap=HEATMAP[..., 10:-10], sil=WALK[..., 10:-10]),
    "limbs and joints": lambda f: write(f, z_limbs=HEATMAP[:, 0], a_joints_npy=HEATMAP[:, 1], silhouettes=WALK),
    "keypoints": lambda f: write(f, keypoints=POINTS, sil_npy=WALK),
    "keypoints called pose": lambda f: write(f, **{"2_pose": POINTS.astype(np.float32), "1_sil": WALK}),
    "raw and aligned": lambda f: write(f, **{"heatmap": HEATMAP, "sils": 255 - WALK, "aligned-sils": WALK}),
    "other modalities": lambda f: write(f, heatmap=HEATMAP, sil=WALK, rgbs=np.zeros((FRAMES, 3, 4, 4), np.uint8)),
    "stacked": lambda f: write(f, walk_npy=STACKED),
    "image files": lambda f: (images(f, WALK), write(f, keypoints=POINTS)),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_gives_the_same_maps(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "walk")
    found = read_maps(tmp_path / "walk")
    expected = STACKED
    if form == "cut to 44 columns":
        expected = STACKED.copy()
        expected[..., :10] = expected[..., -10:] = 0
    if form == "keypoints called pose":
        np.testing.assert_allclose(found.silhouettes.astype(int), expected, atol=2)
    else:
        np.testing.assert_array_equal(found.silhouettes, expected)
    assert found.silhouettes.dtype == np.uint8 and len(found.report.frames) == FRAMES
    # What a recogniser and the command line read: the same, from the folder's path.
    np.testing.assert_array_equal(prepare(str(tmp_path / "walk"), 64, channels=3).silhouettes, found.silhouettes)


def test_archives_of_several_arrays_and_of_one(tmp_path: Path) -> None:
    for name, arrays in (
        ("named", {"heatmap": HEATMAP, "silhouettes": WALK, "ratios": np.zeros(FRAMES)}),
        ("keypoints", {"a_sil": WALK, "z_keypoints": POINTS}),
        ("one", {"x": STACKED}),
    ):
        (tmp_path / name).mkdir()
        np.savez_compressed(tmp_path / name / "walk.npz", **arrays)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read_maps(tmp_path / name).silhouettes, STACKED)


def test_a_tree_gives_silhouettes_or_all_maps(tmp_path: Path) -> None:
    write(tmp_path / "001" / "nm-01" / "090", **{"0_heatmap": HEATMAP, "1_sil": WALK})
    (reference,) = SequenceTree(tmp_path)
    np.testing.assert_array_equal(reference.load(), WALK)
    np.testing.assert_array_equal(reference.prepare(64).silhouettes, WALK)
    np.testing.assert_array_equal(reference.prepare(64, channels=3).silhouettes, STACKED)


def test_a_tree_of_image_files_and_keypoints(tmp_path: Path) -> None:
    folder = tmp_path / "001" / "nm-01" / "090"
    images(folder, WALK)
    write(folder, keypoints=POINTS)
    (reference,) = SequenceTree(tmp_path)
    assert reference.file() == folder
    np.testing.assert_array_equal(reference.load(), WALK)
    np.testing.assert_array_equal(reference.prepare(64, channels=3).silhouettes, STACKED)
    write(folder, walk=WALK)  # which of the two are the silhouettes?
    with pytest.raises(DatasetError, match="not clear"):
        SequenceTree(tmp_path)


def test_frames_without_anybody_are_left_out_of_all_maps() -> None:
    blank, points = WALK.copy(), POINTS.copy()
    blank[[0, 5]] = 0
    points[5] = 0  # where there is no silhouette there often is no pose: it is not drawn at all
    kept = [1, 2, 3, 4, 6, 7]
    for named in ({"heatmap": HEATMAP}, {"keypoints": points}):
        found = join_maps({**named, "silhouettes": blank})
        np.testing.assert_array_equal(found.silhouettes[:, 2], WALK[kept])
        assert [frame.kept for frame in found.report.frames] == [i in kept for i in range(FRAMES)]
    np.testing.assert_array_equal(found.silhouettes[:, :2], skeleton_maps(POINTS[kept]))
    with pytest.raises(TooFewFramesError):
        join_maps({"heatmap": HEATMAP, "silhouettes": blank}, min_frames=7)


def test_raw_masks_are_normalised() -> None:
    raw = np.pad(WALK, ((0, 0), (20, 30), (50, 11)))
    np.testing.assert_array_equal(join_maps({"heatmap": HEATMAP, "silhouettes": raw}).silhouettes, STACKED)


@pytest.mark.parametrize(
    ("arrays", "kind", "words"),
    [
        ({"0_heatmap": HEATMAP[:-1], "1_sil": WALK}, SilhouetteShapeError, "7 frames of heatmap, 8 of silhouettes"),
        ({"keypoints": POINTS, "sil": WALK[:-2]}, SilhouetteShapeError, "8 frames of keypoints, 6 of silhouettes"),
        ({"limbs": HEATMAP[:, 0], "joints": HEATMAP[1:, 1], "sil": WALK}, SilhouetteShapeError, "7 frames of joints"),
        ({"0_heatmap": WALK, "1_sil": HEATMAP[:, 0]}, GaitError, "heatmap|silhouettes"),  # exchanged
        ({"limbs": HEATMAP[:, 0], "joints": WALK, "sil": HEATMAP[:, 1]}, SilhouetteValueError, "exchanged"),
        ({"heatmap": HEATMAP, "ratios": WALK}, DatasetError, "a map is missing; got heatmap; expected silhouettes"),
        ({"limbs": HEATMAP[:, 0], "sil": WALK}, DatasetError, "a map is missing; got limbs, silhouettes"),
        ({"sil": WALK, "rgb": WALK}, DatasetError, "a map is missing; got silhouettes"),
        (
            {"sil_a": WALK, "sil_b": WALK, "heatmap": HEATMAP},
            DatasetError,
            "silhouettes is not clear; got sil_a.pkl, s",
        ),
        ({"heatmap": HEATMAP.astype(np.float32) / 255, "sil": WALK}, SilhouetteValueError, "wrong dtype"),
        ({"heatmap": HEATMAP[:, :1], "sil": WALK}, SilhouetteShapeError, r"wrong shape.*\[T, 2, S, S\]"),
        ({"heatmap": HEATMAP[..., :-2], "sil": WALK}, SilhouetteShapeError, "wrong shape"),
        ({"keypoints": POINTS * np.nan, "sil": WALK}, SilhouetteValueError, "NaN or infinite"),
        ({"keypoints": POINTS, "sil": WALK * np.float32("nan")}, SilhouetteValueError, "NaN or infinite"),
        ({"keypoints": POINTS, "sil": WALK[:0]}, NoFramesError, "no frame"),
        ({"silhouettes": WALK}, DatasetError, r"some are missing; got silhouettes.pkl alone, \[8, 64, 64\]; expected"),
    ],
)
def test_what_does_not_fit_is_refused_by_path(
    tmp_path: Path, arrays: dict[str, Any], kind: type[GaitError], words: str
) -> None:
    folder = write(tmp_path / "walk", **arrays)
    for read in (read_maps, lambda path: prepare(path, 64, channels=3)):
        with pytest.raises(kind, match=words) as caught:
            read(folder)
        assert str(folder) in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "walk", heatmap=HEATMAP, sil=WALK)
    (folder / "heatmap.pkl").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"heatmap\.pkl.*damaged"):
        read_maps(folder)
    (folder / "heatmap.pkl").unlink()
    (folder / "heatmap.npz").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"heatmap\.npz.*cannot be used"):
        read_maps(folder)


def test_a_recogniser_reads_such_folders(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gaitsdk import Bundle, Recognizer
    from gaitsdk.models import create

    torch.manual_seed(0)
    Bundle.create(tmp_path / "b.gait", backbone=create("skeletongait++", tag="tiny"), licence="CC0-1.0")
    folder = write(tmp_path / "walk", **{"0_heatmap": HEATMAP, "1_sil": WALK})
    options: dict[str, Any] = {"runtime": "torch", "device": "cpu", "reranker": "none"}
    recognizer = Recognizer.load(tmp_path / "b.gait", gallery=tmp_path / "people.db", **options)
    np.testing.assert_array_equal(recognizer.embed(str(folder)), recognizer.embed(STACKED))
    with pytest.raises(DatasetError, match="some are missing"):
        recognizer.embed(write(tmp_path / "silhouettes", sil=WALK))


def test_names_say_what_a_file_holds() -> None:
    assert name_maps(["0_heatmap.pkl", "1_sil.pkl", "3_rgbs.pkl"]) == {
        "heatmap": "0_heatmap.pkl",
        "silhouettes": "1_sil.pkl",
    }
    # "pose" is the weakest word, for drawn maps are called pose maps, too.
    assert name_maps(["pose_heatmap", "pose_keypoints"]) == {"heatmap": "pose_heatmap", "keypoints": "pose_keypoints"}
    assert name_maps(["rgb", "depth"]) == {}
