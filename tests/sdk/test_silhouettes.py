"""Masks in every form that people have them become the same silhouettes, or a refusal that says why."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk import errors, synthetic
from gaitsdk.quality import EMPTY, MIXED_RANGE, NO_CENTRE, TOO_SMALL, noise_found
from gaitsdk.resize import _taps, scale_and_centre
from gaitsdk.silhouettes import (
    MAX_FRAMES,
    MIN_FRAMES,
    check_silhouettes,
    cut_and_scale,
    load_sequence,
    normalise,
    prepare,
    prepare_unchecked,
)

MASKS = synthetic.masks(3, "nm-01", "090", frames=8)
WALK = synthetic.sequence(3, "nm-01", "090", frames=8)
EXPECTED = normalise(MASKS).silhouettes


def figure(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random blob, bool [height, width], that touches all four edges and has more than 40 pixels."""
    mask = np.zeros((height, width), bool)
    mask[:, width // 3 : max(2 * width // 3, width // 3 + 2)] = True
    mask[height // 2] = True
    mask ^= (rng.random(mask.shape) < 0.1) & (np.arange(height)[:, None] > 0)
    mask[0, width // 2] = mask[-1, width // 2] = mask[height // 2, 0] = mask[height // 2, -1] = True
    return mask


def walk_of_figures(seed: int, frames: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [figure(rng, *rng.integers((30, 12), (90, 60))) for _ in range(frames)]


def on_canvas(mask: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    canvas = np.zeros((height, width), mask.dtype)
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return canvas


# The reference.


@pytest.mark.parametrize("size", [64, 128])
def test_equals_the_reference(parity_dir: Path, size: int) -> None:
    with np.load(parity_dir / "pretreatment.npz") as data:
        raw = [data[f"raw_{index:02d}"] for index in range(12)]
        expected = data[f"out_{size}"]
    kept = json.loads((parity_dir / "pretreatment.json").read_text())["kept"]
    result = normalise(raw, size)
    assert {str(each.index): each.kept for each in result.report.frames} == kept
    assert result.silhouettes.shape == expected.shape
    difference = np.abs(result.silhouettes.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-4
    reasons = [each.explanation for each in result.report.frames if not each.kept]
    assert reasons[0] == "too small: 25 foreground pixels < 40" and reasons[1] == EMPTY
    assert reasons[2].startswith(MIXED_RANGE)


def test_resizing_equals_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(n) for n in rng.integers((20, 8), (300, 200)))
        mask = figure(rng, height, width).astype(np.uint8) * 255
        if rng.random() < 0.3:
            mask[mask > 0] = rng.integers(1, 256, int((mask > 0).sum()))
        new_width = 64 * width // height
        if new_width < 2:
            continue
        resized = cv2.resize(mask, (new_width, 64), interpolation=cv2.INTER_CUBIC)
        mass = resized.sum(axis=0, dtype=np.int64).cumsum()
        centre = int(np.argmax(mass > mass[-1] / 2))
        ours = scale_and_centre(mask, 0, width, 64)
        if centre == 0:
            assert ours is None
            continue
        padded = np.pad(resized, ((0, 0), (32, 32)))[:, centre : centre + 64]
        assert ours is not None and np.abs(ours.astype(int) - padded).max() <= 1


def test_weights_are_a_partition_of_unity() -> None:
    for old, new in ((5, 64), (64, 64), (130, 64), (1, 7), (333, 10)):
        indices, weights = _taps(old, new)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
        assert indices.min() >= 0 and indices.max() < old
    indices, weights = _taps(64, 64)
    np.testing.assert_array_equal(weights @ [0, 1, 0, 0], np.ones(64))


# The same walk in other forms.


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(["?", "u1", "i1", "<i2", ">i4", "u8", "f2", ">f8"]))
def test_every_kind_of_numbers_gives_the_same(seed: int, dtype: str) -> None:
    masks = walk_of_figures(seed)
    expected = normalise([mask.astype(np.uint8) * 255 for mask in masks]).silhouettes
    result = normalise([mask.astype(dtype) for mask in masks])
    np.testing.assert_array_equal(result.silhouettes, expected)
    integers = np.dtype(dtype).kind in "iu"
    assert any("0/1" in note for note in result.report.notes) == integers


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    top=st.integers(0, 50),
    extra=st.integers(0, 50),
    size=st.sampled_from([16, 64, 128]),
)
def test_the_same_rows_anywhere_give_the_same(seed: int, top: int, extra: int, size: int) -> None:
    masks = walk_of_figures(seed)
    moved = [on_canvas(mask, top + len(mask) + extra, mask.shape[1], top, 0) for mask in masks]
    np.testing.assert_array_equal(normalise(moved, size).silhouettes, normalise(masks, size).silhouettes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), left=st.integers(1, 4), right=st.integers(0, 4))
def test_moving_sideways_by_whole_pixels_of_the_result_changes_nothing(seed: int, left: int, right: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [figure(rng, 128, int(rng.integers(10, 40)) * 2) for _ in range(6)]  # two pixels become one
    still = [on_canvas(f, 128, f.shape[1] + 160, 0, 80) for f in frames]
    moved = [on_canvas(f, 128, f.shape[1] + 160 + 2 * (left + right), 0, 80 + 2 * left) for f in frames]
    np.testing.assert_array_equal(normalise(moved).silhouettes, normalise(still).silhouettes)


def test_moving_sideways_by_any_pixels_changes_little() -> None:
    still = normalise(np.pad(MASKS, ((0, 0), (0, 0), (0, 37)))).silhouettes.astype(int)
    moved = normalise(np.pad(MASKS, ((0, 0), (0, 0), (37, 0)))).silhouettes.astype(int)
    assert np.abs(still - moved).mean() < 6  # where between pixels the edge is sampled, or one column of centring


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_frames_are_independent_of_each_other(seed: int, order: list[int]) -> None:
    masks = walk_of_figures(seed)
    straight = normalise(masks)
    shuffled = normalise([masks[index] for index in order])
    np.testing.assert_array_equal(shuffled.silhouettes, straight.silhouettes[list(order)])
    assert [each.area for each in shuffled.report.frames] == [straight.report.frames[i].area for i in order]


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
        lambda x: x.astype(">i4"),
        lambda x: x > 0,
        lambda x: (x / 255).astype(np.float32),
        lambda x: x.tolist(),
        lambda x: [frame.astype(kind) for frame, kind in zip(x, ("u1", "i8", ">u2", "u1") * 2, strict=True)],
    ],
    ids=["list", "tuple", "fortran", "negative-strides", "strided", "big-endian", "bool", "float", "lists", "mixed"],
)
def test_forms_of_arrays(form: Callable[[np.ndarray], Any]) -> None:
    source = form(MASKS)
    if isinstance(source, np.ndarray):
        source.setflags(write=False)
    result = normalise(source)
    np.testing.assert_array_equal(result.silhouettes, EXPECTED)
    assert result.silhouettes.dtype == np.uint8 and result.silhouettes.flags["C_CONTIGUOUS"]


def test_input_is_not_changed() -> None:
    for source in (MASKS, (MASKS > 0).astype(np.uint8), WALK):
        before = source.copy()
        prepare(source)
        np.testing.assert_array_equal(source, before)


def test_torch_tensors_are_arrays_too() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(normalise(torch.from_numpy(MASKS)).silhouettes, EXPECTED)
    with pytest.raises(errors.SilhouetteValueError, match=r"\.cpu\(\)"):
        normalise(torch.zeros(8, 20, 20, requires_grad=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """PNG files 0.png .. 10.png, whose names sort wrongly as text, and what macOS leaves beside them."""
    from PIL import Image

    masks = synthetic.masks(3, frames=11)
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{index}.png")
    (tmp_path / "._0.png").write_bytes(b"not a picture")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_files(folder: Path, tmp_path: Path) -> None:
    masks = synthetic.masks(3, frames=11)
    expected = normalise(masks).silhouettes
    result = normalise(folder)
    np.testing.assert_array_equal(result.silhouettes, expected)
    assert [each.source for each in result.report.frames] == [f"{index}.png" for index in range(11)]
    np.testing.assert_array_equal(normalise([str(folder / f"{i}.png") for i in range(11)]).silhouettes, expected)
    np.testing.assert_array_equal(load_sequence(folder), masks)
    np.save(tmp_path / "walk.npy", masks)
    (tmp_path / "walk.pkl").write_bytes(pickle.dumps(masks))
    for name in ("walk.npy", "walk.pkl"):
        np.testing.assert_array_equal(normalise(tmp_path / name).silhouettes, expected)
        np.testing.assert_array_equal(load_sequence(str(tmp_path / name)), masks)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "LA", "P"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    from PIL import Image

    for index, mask in enumerate(MASKS):
        Image.fromarray(mask).convert(mode).save(tmp_path / f"{index:02d}.png")
    np.testing.assert_array_equal(normalise(tmp_path).silhouettes, EXPECTED)


# Silhouettes that are normalised already.


@pytest.mark.parametrize("form", [np.asarray, list, lambda x: x.astype(np.int64), lambda x: x / 255])
def test_prepare_takes_normalised_silhouettes_as_they_are(form: Callable[[np.ndarray], Any]) -> None:
    result = prepare(form(WALK))
    np.testing.assert_array_equal(result.silhouettes, WALK)
    assert result.report.already_normalised and result.report.kept == 8
    assert all(each.bbox is not None and each.bbox[0] == 0 and each.bbox[2] == 64 for each in result.report.frames)


def test_prepare_never_changes_what_normalise_gives() -> None:
    for size in (32, 64, 128):
        silhouettes = normalise(MASKS, size).silhouettes
        np.testing.assert_array_equal(prepare(silhouettes, size).silhouettes, silhouettes)


def test_prepare_normalises_everything_else() -> None:
    np.testing.assert_array_equal(prepare(MASKS).silhouettes, EXPECTED)
    raw = np.zeros_like(WALK)  # [T, 64, 64], but the person is small: not normalised
    raw[:, 20:52, 16:48] = WALK[:, ::2, ::2]
    result = prepare(raw)
    assert not result.report.already_normalised
    assert (result.silhouettes[:, 0].max(axis=1) > 0).all() and (result.silhouettes[:, -1].max(axis=1) > 0).all()
    other = prepare(WALK, 128)
    assert other.silhouettes.shape == (8, 128, 128) and not other.report.already_normalised


def test_prepare_puts_cut_columns_back() -> None:
    cut = WALK[:, :, 10:54]
    result = prepare(cut)
    np.testing.assert_array_equal(result.silhouettes[:, :, 10:54], cut)
    assert result.silhouettes.shape == WALK.shape and result.report.already_normalised
    np.testing.assert_array_equal(cut_and_scale(result.silhouettes), cut / np.float32(255))


def test_prepare_drops_frames_without_anybody() -> None:
    gaps = WALK.copy()
    gaps[[2, 5]] = 0
    result = prepare(gaps)
    np.testing.assert_array_equal(result.silhouettes, np.delete(WALK, [2, 5], axis=0))
    assert [each.index for each in result.report.frames if each.reason == EMPTY] == [2, 5]


def test_normalising_twice_changes_little() -> None:
    again = normalise(EXPECTED).silhouettes
    assert np.abs(again.astype(int) - EXPECTED).mean() < 1
    binary = prepare((WALK > 127).astype(np.uint8))
    assert any("0/1" in note for note in binary.report.notes)
    assert set(np.unique(binary.silhouettes)) == {0, 255}


# The report.


def test_report() -> None:
    raw = MASKS.copy()
    raw[1] = 0
    raw[3] = 0
    raw[3, 100:105, 100:105] = 255
    raw[6] = 0
    raw[6, 50:150, 0] = 255
    raw[6, 50, 1] = 255
    report = normalise(raw).report
    assert (report.total, report.kept, report.dropped) == (8, 5, 3)
    assert report.reasons == {EMPTY: 1, TOO_SMALL: 1, NO_CENTRE: 1}
    assert report.frames[3].bbox == (100, 100, 105, 105) and report.frames[3].area == 25
    assert report.frames[1].bbox is None and report.frames[1].area == 0
    assert report.summary().startswith("5 of 8 frames kept (3 dropped: ") and "\n" not in report.summary()
    data = json.loads(json.dumps(report.to_dict(per_frame=True)))
    assert data["kept"] == 5 and len(data["frames"]) == 8 and len(data["dropped_frames"]) == 3
    assert data["dropped_frames"][1]["reason"] == "too small: 25 foreground pixels < 40"
    assert "frames" not in report.to_dict()


def test_the_smallest_person_that_is_kept() -> None:
    for pixels, kept in ((39, 0), (40, 6)):
        frame = np.zeros((80, 40), np.uint8)
        frame[10 : 10 + pixels, 20] = 255
        masks = [np.roll(frame, shift, axis=1) for shift in range(6)]
        if kept:
            assert normalise(masks, check_static=False).report.kept == kept
        else:
            with pytest.raises(errors.NoFramesError, match="6 too small"):
                normalise(masks, check_static=False)


# Refusals.


def _with(value: float) -> np.ndarray:
    floats = MASKS / 255
    floats[3, 2, 1] = value
    return floats


BAD: dict[str, tuple[Any, type[errors.GaitError], str]] = {
    "None": (None, errors.SilhouetteValueError, "None"),
    "empty list": ([], errors.NoFramesError, "empty list"),
    "no frames": (MASKS[:0], errors.NoFramesError, "no frame"),
    "one frame": (MASKS[:1], errors.TooFewFramesError, "1 of 1"),
    "four frames": (MASKS[:4], errors.TooFewFramesError, "5 or more"),
    "100,000 frames": (np.broadcast_to(MASKS[:1], (100_000, 240, 320)), errors.TooManyFramesError, "cut the recording"),
    "100,000 in a list": ([MASKS[0]] * 100_000, errors.TooManyFramesError, "100000 frames"),
    "too many pixels": (np.broadcast_to(MASKS[:1, :1, :1], (1500, 3000, 3000)), errors.TooManyFramesError, "pixels"),
    "a huge frame": (np.broadcast_to(MASKS[:1, :1, :1], (9, 10_000, 10_000)), errors.SilhouetteShapeError, "too large"),
    "rank 2": (MASKS[0], errors.SilhouetteShapeError, "stack"),
    "channel last": (MASKS[..., None], errors.SilhouetteShapeError, r"drop the last axis: masks\[\.\.\., 0\]"),
    "channel second": (MASKS[:, None], errors.SilhouetteShapeError, r"masks\[:, 0\]"),
    "colour": (np.zeros((8, 9, 9, 3), np.uint8), errors.SilhouetteShapeError, "colour images, not masks"),
    "several sequences": (np.zeros((2, 8, 9, 9), np.uint8), errors.SilhouetteShapeError, "each by itself"),
    "frames with a channel": ([MASKS[0][..., None]] * 8, errors.SilhouetteShapeError, r"frame\[\.\.\., 0\]"),
    "rank 5": (MASKS[None, None], errors.SilhouetteShapeError, "rank"),
    "rank 0": (np.float32(3), errors.SilhouetteShapeError, "rank"),
    "number": (7, errors.SilhouetteValueError, "int"),
    "colour frames": ([np.zeros((9, 9, 3))] * 8, errors.SilhouetteShapeError, "frame 0.*segment"),
    "height 0": (np.zeros((8, 0, 64), np.uint8), errors.SilhouetteShapeError, r"\[0, 64\]"),
    "width 0": (np.zeros((8, 64, 0), np.uint8), errors.SilhouetteShapeError, "too small"),
    "width 1": (np.ones((8, 64, 1), np.uint8), errors.SilhouetteShapeError, "too small"),
    "NaN": (_with(np.nan), errors.SilhouetteValueError, "frame 3"),
    "infinite": (_with(np.inf), errors.SilhouetteValueError, "frame 3"),
    "minus infinity": (_with(-np.inf), errors.SilhouetteValueError, "frame 3"),
    "negative": (_with(-0.5), errors.SilhouetteValueError, "-0.5"),
    "float in 0..255": (MASKS.astype(np.float32), errors.SilhouetteValueError, "divide"),
    "int above 255": (MASKS.astype(np.int32) * 2, errors.SilhouetteValueError, "510"),
    "negative int": (-(MASKS > 0).astype(np.int8), errors.SilhouetteValueError, "-1"),
    "labels": ((MASKS > 0) * np.uint8(15), errors.SilhouetteValueError, "15"),
    "object": (MASKS.astype(object), errors.SilhouetteValueError, "object"),
    "complex": (MASKS.astype(complex), errors.SilhouetteValueError, "complex"),
    "strings": (np.array([[["a"] * 3] * 3] * 8), errors.SilhouetteValueError, "<U1"),
    "ragged": ([[[1, 2], [3]]] * 8, errors.SilhouetteValueError, "frame 0"),
    "dict": ({"a": 1}, errors.SilhouetteValueError, "dict"),
    "generator": ((frame for frame in MASKS), errors.SilhouetteValueError, r"pass list\("),
    "map": (map(np.asarray, MASKS), errors.SilhouetteValueError, r"map.*pass list\("),
    "empty text": ("", errors.SilhouetteError, "path is empty"),
    "empty path": (Path(""), errors.SilhouetteError, r"path is empty.*Path\.cwd"),
    "noise": (np.random.default_rng(0).random((30, 64, 64)) > 0.6, errors.SilhouetteValueError, "show noise"),
    "masked": (np.ma.masked_array(MASKS, MASKS > 0), errors.SilhouetteValueError, "filled"),
    "all zero": (np.zeros_like(MASKS), errors.NoFramesError, "8 empty"),
    "all ones": (np.full_like(MASKS, 255), errors.PolarityError, "8 of 8"),
    "inverted": (255 - MASKS, errors.PolarityError, "255 - masks"),
    "inverted bool": (MASKS == 0, errors.PolarityError, "~masks"),
    "inverted 0/1": ((MASKS == 0).astype(np.uint8), errors.PolarityError, "swapped"),
    "inverted normalised": (255 - WALK, errors.PolarityError, "swapped"),
    "static": (np.repeat(MASKS[:1], 8, axis=0), errors.StaticSequenceError, "picture"),
    "static normalised": (np.repeat(WALK[:1], 8, axis=0), errors.StaticSequenceError, "picture"),
    "mostly empty": (np.where(np.arange(8)[:, None, None] < 4, MASKS, 0), errors.TooFewFramesError, "4 empty"),
    "one white pixel": (
        np.eye(8, dtype=np.uint8)[:, :, None] * np.eye(8, dtype=np.uint8)[0] * 255,
        errors.NoFramesError,
        "1 foreground|too small",
    ),
    "mixed": ([MASKS[0], "a.png"] * 4, errors.SilhouetteValueError, "mixed"),
    "missing": (Path("no/such/folder"), errors.SilhouetteError, "no such"),
    "missing image": (["no.png"] * 8, errors.SilhouetteError, "no.png"),
    "unknown file": (Path(__file__), errors.SilhouetteError, "not a sequence"),
    "folder without images": (Path(__file__).parent, errors.NoFramesError, "no image file"),
}


@pytest.mark.parametrize("function", [normalise, prepare])
@pytest.mark.parametrize("name", BAD)
def test_refusals(name: str, function: Callable[..., Any]) -> None:
    source, kind, says = BAD[name]
    with pytest.raises(kind, match=says) as caught:
        function(source)
    assert len(str(caught.value)) > 30


#: What only a look at all pixels tells; all else is refused before a client sends anything.
LOOKED_AT = ("noise", "inverted normalised", "static", "static normalised")


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_before_it_is_looked_at(name: str) -> None:
    source, kind, says = BAD[name]
    if name not in LOOKED_AT:
        with pytest.raises(kind, match=says):
            prepare_unchecked(source)
        return
    unchecked = prepare_unchecked(source)
    assert unchecked.silhouettes.shape[1:] == (64, 64) and len(unchecked.silhouettes) >= MIN_FRAMES
    for _ in range(2):
        with pytest.raises(kind, match=says):
            unchecked.check()


def test_a_file_is_named_whenever_it_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", np.repeat(WALK[:1], 8, axis=0))
    with pytest.raises(errors.StaticSequenceError, match=r"same\.npy"):
        prepare_unchecked(tmp_path / "same.npy").check()


@pytest.mark.parametrize("name", ["a.npy", "a.pkl"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"junk", b"\x80\x04"])
def test_damaged_array_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.DatasetError, match=name):
        normalise(tmp_path / name)


def test_array_files_of_other_things(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(errors.DatasetError, match="objects"):
        normalise(tmp_path / "objects.npy")
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, a=MASKS)
    with pytest.raises(errors.DatasetError, match="archive"):
        normalise(tmp_path / "archive.npy")


def test_damaged_images(folder: Path) -> None:
    whole = (folder / "4.png").read_bytes()
    for content in (b"", b"junk", whole[:20], whole[: len(whole) // 2], whole[:60] + b"\xff" * 40 + whole[100:]):
        (folder / "4.png").write_bytes(content)
        with pytest.raises(errors.SilhouetteError, match=r"4\.png"):
            normalise(folder)
    (folder / "4.png").unlink()
    (folder / "4.png").mkdir()
    with pytest.raises(errors.SilhouetteError, match="is a folder"):
        normalise(folder)


def test_an_image_of_another_kind(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(8):
        Image.fromarray(MASKS[index].astype(np.uint16) * 257).save(tmp_path / f"{index}.png")
    with pytest.raises(errors.SilhouetteValueError, match=r"0\.png.*I;16|0\.png.*mode I"):
        normalise(tmp_path)


def test_checks_can_be_switched_off() -> None:
    assert normalise(MASKS[:1], min_frames=1).silhouettes.shape == (1, 64, 64)
    assert len(normalise(np.repeat(MASKS[:1], 8, axis=0), check_static=False).silhouettes) == 8
    assert len(normalise(255 - MASKS, check_polarity=False, check_static=False).silhouettes) == 8
    assert len(prepare(WALK[:2], min_frames=1).silhouettes) == 2
    longer = np.concatenate([WALK] * 300)
    with pytest.raises(errors.TooManyFramesError, match=str(MAX_FRAMES)):
        prepare(longer)
    assert len(prepare(longer, max_frames=2400).silhouettes) == 2400


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"size": 63}, {"size": 64.0}, {"size": True}, {"size": 4096}, {"min_frames": 0}, {"max_frames": 2}],
    ids=str,
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError, match=next(iter(options))):
        normalise(MASKS, **options)


def test_absurd_aspect_ratios_take_no_memory() -> None:
    flat = np.zeros((6, 2, 2**22), np.uint8)
    for index in range(6):
        flat[index, index % 2, :5000] = 255
    with pytest.raises(errors.NoFramesError, match=NO_CENTRE):
        normalise(flat)
    tall = np.zeros((6, 200_000, 4), np.uint8)
    tall[np.arange(6), :, np.arange(6) % 4] = 255
    with pytest.raises(errors.NoFramesError, match=NO_CENTRE):
        normalise(tall)


# The strict check, and what the network reads.


def test_check_silhouettes() -> None:
    assert check_silhouettes(WALK) is WALK or np.shares_memory(check_silhouettes(WALK), WALK)
    assert check_silhouettes(np.asfortranarray(WALK)).flags["C_CONTIGUOUS"]
    for bad, kind in (
        (WALK / 255, errors.SilhouetteValueError),
        (WALK > 0, errors.SilhouetteValueError),
        ((WALK > 0).astype(np.uint8), errors.SilhouetteValueError),
        (None, errors.SilhouetteValueError),
        (WALK[:, :, 10:54], errors.SilhouetteShapeError),
        (WALK[0], errors.SilhouetteShapeError),
        (WALK[:0], errors.NoFramesError),
        (WALK[:4], errors.TooFewFramesError),
        (np.zeros_like(WALK), errors.NoFramesError),
        (np.where(np.arange(8)[:, None, None] < 4, WALK, 0).astype(np.uint8), errors.TooFewFramesError),
        (np.concatenate([WALK] * 300), errors.TooManyFramesError),
        (np.full_like(WALK, 255), errors.PolarityError),
        (np.repeat(WALK[:1], 8, axis=0), errors.StaticSequenceError),
    ):
        with pytest.raises(kind):
            check_silhouettes(bad)


@pytest.mark.parametrize(("width", "left"), [(44, 44), (64, 44), (88, 68), (128, 88), (192, 132)])
def test_cut_and_scale(width: int, left: int) -> None:
    silhouettes = np.random.default_rng(0).integers(0, 256, (2, 3, 64, width), np.uint8)
    result = cut_and_scale(silhouettes)
    assert result.shape == (2, 3, 64, left) and result.dtype == np.float32
    side = (width - left) // 2
    np.testing.assert_array_equal(result, (silhouettes[..., side : width - side] / 255.0).astype(np.float32))


def test_cut_and_scale_refuses_what_would_be_scaled_wrongly() -> None:
    with pytest.raises(errors.SilhouetteValueError, match="uint8"):
        cut_and_scale(WALK / 255)
    with pytest.raises(errors.SilhouetteShapeError):
        cut_and_scale(WALK[0, 0])


def test_load_sequence_keeps_masks_and_refuses_different_sizes() -> None:
    np.testing.assert_array_equal(load_sequence((MASKS > 0).astype(np.uint8)), MASKS)
    with pytest.raises(errors.SilhouetteShapeError, match="normalise"):
        load_sequence([MASKS[0], MASKS[1, 1:]])


def test_a_folder_of_jpeg_files_and_previews_beside_png_files(tmp_path: Path) -> None:
    from PIL import Image

    for suffix in ("jpg", "JPEG", "bmp"):
        folder = tmp_path / suffix
        folder.mkdir()
        for index, mask in enumerate(MASKS):
            Image.fromarray(mask).save(folder / f"{index}.{suffix}", quality=95)
        listed = normalise([folder / f"{index}.{suffix}" for index in range(8)])
        np.testing.assert_array_equal(normalise(folder).silhouettes, listed.silhouettes)
    for index, mask in enumerate(MASKS):
        Image.fromarray(mask).save(tmp_path / f"{index}.png")
        Image.fromarray(255 - mask).save(tmp_path / f"preview{index}.jpg")
    np.testing.assert_array_equal(normalise(tmp_path).silhouettes, EXPECTED)


def test_a_dot_is_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert normalise(".").report.kept == normalise(Path.cwd()).report.kept == 11


@pytest.mark.parametrize("density", [0.03, 0.1, 0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("shape", [(10, 64, 64), (10, 120, 160), (10, 64, 44)])
def test_noise_is_no_walk(density: float, shape: tuple[int, ...]) -> None:
    masks = np.random.default_rng(1).random(shape) < density
    masks[:, [0, -1]] = False  # so that nobody takes it for inverted
    masks[:, :, [0, -1]] = False
    with pytest.raises(errors.SilhouetteValueError, match="show noise, not a person"):
        prepare(masks)
    assert normalise(masks, check_noise=False).report.kept == 10


def test_people_are_far_from_noise(shared_dir: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("unpack", shared_dir / "data" / "cmu_walks" / "unpack.py")
    assert spec is not None and spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    _, walks, _ = unpack.load(shared_dir / "data" / "cmu_walks" / "cmu_walks.npz")
    assert len(walks) == 814 and all(noise_found(walk) is None for walk in walks)


@pytest.mark.parametrize("kind", synthetic.TYPES)
def test_noisy_synthetic_walkers_are_people(kind: str) -> None:
    for view in ("000", "054", "090", "180"):
        walk = synthetic.sequence(5, kind, view, frames=8, noise=1.0)
        np.testing.assert_array_equal(prepare(walk).silhouettes, walk)


def test_a_few_frames_of_noise_are_no_reason() -> None:
    noise = (np.random.default_rng(0).random((1, 64, 64)) > 0.7) * np.uint8(255)
    assert noise_found(np.concatenate([WALK, noise])) is None and noise_found(noise) is not None
    assert noise_found(np.zeros((0, 64, 64), np.uint8)) is None and noise_found(np.zeros((3, 8, 8), np.uint8)) is None
