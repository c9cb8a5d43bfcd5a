"""Training data of three maps per frame: trees, the packed file, augmentation; SkeletonGait++ learns from them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gaitsdk import Bundle, synthetic
from gaitsdk.cli import main
from gaitsdk.errors import DatasetError, InputError, OptionError
from gaitsdk.silhouettes import skeleton_maps, stack_maps
from gaitsdk_training.backbone import BackboneTraining, check_input, train_backbone
from gaitsdk_training.data import (
    Augmentation,
    FrameSlices,
    PackedSequences,
    SequenceDataset,
    augment,
    from_tree,
    load_batch,
    pack,
    to_input,
)

KINDS, VIEWS, FRAMES = ("nm-01", "bg-01"), ("000", "090"), 8
TINY = {"channels": [4, 4, 8, 8], "layers": [1, 1, 1, 1], "fusion_channels": 2, "dims": 8, "strips": 4}
CONFIG = BackboneTraining(
    model="skeletongait++", options=TINY, p=3, k=2, frames=4, sampling="fixed_ordered", steps=10, lr=3e-3, log_every=1,
    validate_every=100, checkpoint_every=4, device="cpu", augmentation=Augmentation(flip=0.5, rotate=0.5),
)  # fmt: skip


def keypoints(identity: int, frames: int, seed: int = 0) -> NDArray[np.float64]:
    """[frames, 17, 3]: somebody with legs of their own length who swings them, every joint seen."""
    rng = np.random.default_rng((identity, seed))
    leg = 60 + 30 * (identity % 5) / 4
    swing = 25 * np.sin(2 * np.pi * (np.arange(frames) / 10 + rng.random()))
    body = np.array([
        (200, 100), (203, 97), (197, 97), (207, 99), (193, 99), (220, 130), (180, 130), (228, 165), (172, 165),
        (230, 195), (170, 195), (212, 200), (188, 200), (212, 0), (188, 0), (212, 0), (188, 0),
    ], np.float64)  # fmt: skip
    points = np.repeat(body[None], frames, axis=0)
    for sign, knee in ((1, 13), (-1, 14)):
        for joint, share in ((knee, 0.5), (knee + 2, 1.0)):
            points[:, joint, 0] += sign * share * swing
            points[:, joint, 1] = 200 + 2 * share * leg
    points += rng.normal(0, 0.5, points.shape)
    return np.concatenate([points, np.full((frames, 17, 1), 0.9)], axis=2)


def stacked(identity: int, kind: str, view: str, frames: int = FRAMES) -> NDArray[np.uint8]:
    """[frames, 3, 64, 64] of a synthetic walker."""
    maps = skeleton_maps(keypoints(identity, frames, sum(map(ord, kind + view))))
    silhouettes = synthetic.sequence(identity, kind, view, frames=frames)
    return stack_maps(limbs=maps[:, 0], joints=maps[:, 1], silhouettes=silhouettes)


def write(path: Path, array: NDArray[Any]) -> None:
    path.write_bytes(pickle.dumps(np.ascontiguousarray(array), protocol=4))


def write_tree(root: Path, identities: Iterable[int]) -> Path:
    """`<root>/<id>/<type>/<view>/` with 0_heatmap.pkl and 1_sil.pkl, as the field's trees have them."""
    for identity in identities:
        for kind in KINDS:
            for view in VIEWS:
                folder = root / f"{identity:03d}" / kind / view
                folder.mkdir(parents=True)
                maps = stacked(identity, kind, view)
                write(folder / "0_heatmap.pkl", maps[:, :2])
                write(folder / "1_sil.pkl", maps[:, 2])
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 identities x 2 types x 2 views; not to be changed."""
    return write_tree(tmp_path_factory.mktemp("maps") / "tree", range(1, 6))


@pytest.fixture(scope="module")
def data(walks: Path) -> SequenceDataset:
    return from_tree(walks, channels=3)


# ---------------------------------------------------------------------------------------------------------------- data
def test_a_tree_gives_all_maps_of_a_frame(walks: Path, data: SequenceDataset) -> None:
    assert (len(data), data.channels, data.size, len(data.classes)) == (20, 3, 64, 5)
    np.testing.assert_array_equal(data[1], stacked(1, "bg-01", "090"))
    some = data.subset([1, 4])
    assert some.channels == 3 and some[1].shape == (FRAMES, 3, 64, 64)
    batch = load_batch(data, [1, 4], 3, "fixed_ordered", np.random.default_rng(0))
    assert batch.shape == (2, 3, 3, 64, 64)
    for row, source in zip(batch, (data[1], data[4]), strict=True):
        assert all(any((frame == each).all() for each in source) for frame in row)  # maps of one frame stay together
    x = to_input(batch, (64, 44))
    assert x.shape == (2, 3, 3, 64, 44)
    np.testing.assert_array_equal(x.numpy(), batch[..., 10:-10] / np.float32(255))
    plain = from_tree(walks)
    assert plain.channels == 1
    np.testing.assert_array_equal(plain[1], data[1][:, 2])


def test_sequences_of_other_numbers_of_maps_do_not_mix(data: SequenceDataset) -> None:
    with pytest.raises(InputError, match="sequence 1"):
        SequenceDataset([data[0], data[1][:, 2]], *[["a", "b"]] * 3)
    with pytest.raises(InputError, match="sequence 1"):
        SequenceDataset([data[0], data[1][:, :2]], *[["a", "b"]] * 3)


def test_what_does_not_fit_is_skipped_by_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = write_tree(tmp_path / "tree", [1, 2])
    maps, bad = stacked(1, "nm-01", "000"), {view: tree / "001" / "nm-01" / view for view in VIEWS}
    write(bad["000"] / "0_heatmap.pkl", maps[:-1, :2])
    (bad["090"] / "0_heatmap.pkl").unlink()
    points = keypoints(1, FRAMES)
    points[3, 5] = np.nan
    write(tree / "001" / "bg-01" / "000" / "0_heatmap.pkl", np.zeros(0, np.uint8))
    (tree / "001" / "bg-01" / "090" / "0_heatmap.pkl").unlink()
    write(tree / "001" / "bg-01" / "090" / "pose.pkl", points)
    data = from_tree(tree, channels=3)
    assert data.classes == ["002"] and data.report is not None
    reasons = {each.path: each.reason for each in data.report.skipped}
    assert set(reasons) == {str(tree / "001" / kind / view) for kind in KINDS for view in VIEWS}
    assert "7 frames of heatmap, 8 of silhouettes" in reasons[str(bad["000"])]
    # One file is left there, and it holds no maps.
    assert "1_sil.pkl alone" in reasons[str(bad["090"])] and str(bad["000"]) in caplog.text
    assert "NaN" in reasons[str(tree / "001" / "bg-01" / "090")]
    with pytest.raises(DatasetError, match=r"no usable sequence.*7 frames of heatmap"):
        from_tree(tree, identities=["001"], channels=3)


def test_a_packed_file_of_maps(walks: Path, data: SequenceDataset, tmp_path: Path) -> None:
    path = pack(walks, tmp_path / "maps.pack", channels=3).path
    for opened in (PackedSequences(path), from_tree(path, channels=3), from_tree(path, channels=3).subset(range(20))):
        assert opened.channels == 3 and isinstance(opened.sequences, FrameSlices)
        for ours, theirs in zip(opened.sequences, data.sequences, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    opened.expect(range(20))  # a wrong range would be refused by the system
    for make, wrong in ((path, 1), (pack(walks, tmp_path / "one.pack").path, 3)):
        with pytest.raises(DatasetError, match=rf"another number of maps per frame.*channels={wrong}"):
            from_tree(make, channels=wrong)
    # The same name, but of other maps: packed again.
    assert pack(walks, path).channels == 1 and pack(walks, path, channels=3).channels == 3


def test_a_packed_file_follows_every_map(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", [1])
    pack(tree, tmp_path / "maps.pack", channels=3)
    file = tree / "001" / "nm-01" / "000" / "0_heatmap.pkl"
    before = file.stat()
    write(file, stacked(4, "nm-01", "000")[:, :2])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = pack(tree, tmp_path / "maps.pack", channels=3)
    np.testing.assert_array_equal(again[2][:, :2], stacked(4, "nm-01", "000")[:, :2])


def test_packed_files_that_are_older_than_maps_can_be_read(walks: Path, tmp_path: Path) -> None:
    path = pack(walks, tmp_path / "old.pack").path
    contents = bytearray(path.read_bytes())
    assert contents[64:68] == b"\1\0\0\0"  # C, of which those files had nothing
    contents[64:68] = b"\0\0\0\0"
    path.write_bytes(contents)
    assert PackedSequences(path).channels == 1 and len(from_tree(path)) == 20


# -------------------------------------------------------------------------------------------------------- augmentation
GEOMETRY = ("flip", "affine", "rotate", "perspective", "erase", "drop_rows", "drop_frames")


@pytest.mark.parametrize("name", GEOMETRY)
def test_all_maps_of_a_frame_are_moved_alike(name: str) -> None:
    """Three times the same map: it stays so, and is moved as it would have been alone."""
    one = torch.rand(6, 5, 64, 44, generator=torch.Generator().manual_seed(1))
    options = Augmentation(**{name: 1.0}, frames=0.9)
    alone = augment(one, options, torch.Generator().manual_seed(2))
    three = augment(one[:, :, None].repeat(1, 1, 3, 1, 1), options, torch.Generator().manual_seed(2))
    assert three.shape == (6, 5, 3, 64, 44) and not torch.equal(alone, one)
    for channel in range(3):
        torch.testing.assert_close(three[:, :, channel], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["erode", "dilate"])
def test_only_a_mask_is_too_thin_or_too_fat(name: str) -> None:
    one = (torch.rand(4, 5, 64, 44, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    options = Augmentation(**{name: 1.0})
    three = augment(one[:, :, None].repeat(1, 1, 3, 1, 1), options, torch.Generator().manual_seed(2))
    assert torch.equal(three[:, :, 0], one) and torch.equal(three[:, :, 1], one)
    assert torch.equal(three[:, :, 2], augment(one, options, torch.Generator().manual_seed(2)))


# ------------------------------------------------------------------------------------------------------------ training
def test_data_of_the_wrong_number_of_maps_are_refused(data: SequenceDataset, walks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match=r"skeletongait\+\+.*got 1; expected 3: limbs, joints, silhouette.*channels=3"
    ):
        train_backbone(from_tree(walks), CONFIG, tmp_path / "run")
    with pytest.raises(OptionError, match=r"gaitbase.*got 3; expected 1\..*channels=1"):
        train_backbone(data, BackboneTraining(device="cpu"), tmp_path / "run")
    with pytest.raises(OptionError, match="expected 3"):
        train_backbone(data, CONFIG, tmp_path / "run", validation=from_tree(walks))
    assert not (tmp_path / "run").exists()
    check_input(CONFIG, data)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads(1)
import test_data_maps as t
def stop(share, report):
    if report["step"] == 6:  # two steps after the checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
t.train_backbone(t.from_tree({tree!r}, channels=3), t.{config}, Path({out!r}), progress=stop)
"""
#: Of every batch another number of frames, and parts of the network at other rates.
UNFIXED = replace(
    CONFIG, frames_min=2, frames_max=7, sampling="unfixed_ordered", frames_skip=1, rates={"layer2": 0.1, "FCs": 0.5}
)


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("config", ["CONFIG", "UNFIXED"])
def test_kill_9_and_resume(walks: Path, data: SequenceDataset, tmp_path: Path, config: str) -> None:
    chosen: BackboneTraining = globals()[config]
    straight = train_backbone(data, chosen, tmp_path / "straight")
    code = KILLED.format(
        folder=str(Path(__file__).parent), tree=str(walks), out=str(tmp_path / "killed"), config=config
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert max(losses(tmp_path / "killed")) == 6
    resumed = train_backbone(data, chosen, tmp_path / "killed")
    expected, found = losses(tmp_path / "straight"), losses(tmp_path / "killed")
    assert found.keys() == expected.keys() == set(range(1, 11))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, abs=1e-6, rel=1e-6), step
    for key, value in straight.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=1e-6, atol=1e-6)


def call(*arguments: object) -> int:
    """The exit code of `gaitsdk ARGUMENTS`, with this package's verbs only."""

    def own(group: str) -> list[EntryPoint]:
        return [point for point in entry_points(group=group) if point.value.startswith("gaitsdk_training.")]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("gaitsdk.cli.entry_points", own)
        patch.setenv("COLUMNS", "1000")
        main([str(each) for each in arguments])
    code = exit_.value.code
    return 0 if code is None else int(code)


def test_the_verb_trains_skeletongait_and_goes_on_from_its_bundle(
    walks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["train", "backbone", "--data", walks, "--validation", "0.4", "--device", "cpu", "--workers", 0, "--json"]
    small = ["--set", "p=3", "--set", "k=2", "--set", "frames=4", "--steps", 2]
    first = [*base, *small, "--set", "model=skeletongait++", "--set", f"options={json.dumps(TINY)}"]
    assert call(*first, "--out", tmp_path / "dry", "--dry-run") == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["network"] == "skeletongait++" and plan["batch"] == [3, 2, 4] and plan["memory"]["activations"] > 0
    assert (plan["identities"], plan["validation_identities"]) == (3, 2) and not (tmp_path / "dry").exists()
    assert call(*first, "--out", tmp_path / "one", "--cache", tmp_path / "maps.pack") == 0
    assert json.loads(capfd.readouterr().out)["sequences"] == plan["sequences"] == 12
    packed = [*base, *small, "--data", tmp_path / "maps.pack", "--out", tmp_path / "no"]  # for a network of silhouettes
    for options in ((), ("--dry-run",)):
        assert call(*packed, *options) == 1
        assert "another number of maps per frame; got 3; expected 1" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()
    bundle = Bundle.load(tmp_path / "one" / "model.gait")
    assert bundle.manifest.input.channels == 3 and PackedSequences(tmp_path / "maps.pack").channels == 3
    init = [*base, *small, "--init", bundle.path, "--out", tmp_path / "two"]
    assert call(*init, "--dry-run") == 0
    assert json.loads(capfd.readouterr().out)["parameters"] == plan["parameters"]
    assert call(*init) == 0
    assert json.loads(capfd.readouterr().out)["init"] == bundle.fingerprint
    assert Bundle.load(tmp_path / "two" / "model.gait").manifest.architecture.name == "skeletongait++"


def test_a_reranker_is_trained_over_it(walks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from gaitsdk.models import create

    torch.manual_seed(0)
    bundle = Bundle.create(tmp_path / "b.gait", backbone=create("skeletongait++", **TINY), licence="CC0-1.0")
    small = ["width=8", "heads=2", "identities=2", "sequences=2", "k=4", "device=cpu"]
    settings = [each for value in small for each in ("--set", value)]
    code = call("train", "reranker", "--data", walks, "--bundle", bundle.path, "--out", tmp_path / "run", *settings,
                "--validation", "0.4", "--v", 5, "--steps", 2, "--json")  # fmt: skip
    assert code == 0, capfd.readouterr().err
    assert json.loads(capfd.readouterr().out)["steps"] >= 0


def test_silhouettes_alone_are_refused_by_the_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    synthetic.write_casiab(tmp_path / "tree", [1, 2], types=("nm-01",), views=("000", "090"), frames=6)
    code = call("train", "backbone", "--data", tmp_path / "tree", "--out", tmp_path / "run",
                "--model", "skeletongait++", "--device", "cpu")  # fmt: skip
    error = capfd.readouterr().err
    assert code == 1 and "some are missing; got 000.pkl alone" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
