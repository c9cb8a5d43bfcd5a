"""Features on disk: the same as computed, once, and again from where a killed run stopped."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitsdk.errors import DatasetError
from gaitsdk.models import GaitModel, create
from gaitsdk_training import feature_file
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.feature_file import FeatureFile
from gaitsdk_training.features import cached_features, embed_dataset
from gaitsdk_training.lists import ListSet

COUNT = 40  # two and a half batches


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def record_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_file, "RECORD_EVERY", 0.0)


def network(seed: int = 0) -> GaitModel:
    options = {"channels": (4, 4, 8, 8), "strides": (1, 2, 1, 1), "stem_stride": 2, "dims": 8, "strips": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create("gaitbase", **options).eval()


def walks(changed: int | None = None) -> SequenceDataset:
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (1 + i % 3, 64, 64), dtype=np.uint8) for i in range(COUNT)]
    if changed is not None:
        frames[changed][-1, 63, 32] ^= 1
    names = [f"{i // 4:03d}" for i in range(COUNT)]
    return SequenceDataset(
        frames, names, ["nm-01", "nm-02"] * (COUNT // 2), ["000", "000", "090", "090"] * (COUNT // 4)
    )


@pytest.fixture(scope="module")
def model() -> GaitModel:
    return network()


@pytest.fixture(scope="module")
def data() -> SequenceDataset:
    return walks()


@pytest.fixture(scope="module")
def expected(model: GaitModel, data: SequenceDataset) -> np.ndarray:
    return embed_dataset(model, data)


def steps(model: GaitModel, data: SequenceDataset, path: Path, frames: int | None = None) -> list[int]:
    """What `cached_features` had to compute: how far it was after each batch."""
    seen: list[int] = []
    cached_features(model, data, path, frames=frames, progress=lambda done, _: seen.append(done))
    return seen


def test_features_are_computed_once_and_mapped(
    model: GaitModel, data: SequenceDataset, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "features.npy"
    first = cached_features(model, data, path)
    assert isinstance(first, np.memmap) and first.dtype == np.float32 and first.shape == (COUNT, 4, 8)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(np.load(path), expected)  # a plain .npy
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.json", f".{path.name}.lock"}

    def no_network(_: object) -> None:
        raise RuntimeError("computed again")

    monkeypatch.setattr(model, "forward_sequences", no_network)
    again = cached_features(model, data, path)
    np.testing.assert_array_equal(again, expected)
    again[0] = 7.0  # what a caller does to the array stays with the caller
    np.testing.assert_array_equal(np.load(path), expected)
    lists = ListSet.build(again, data.identities, data.types, data.views, v=5)
    assert np.shares_memory(lists.features, again)  # nothing is copied into memory


def test_an_interrupted_run_goes_on(
    model: GaitModel, data: SequenceDataset, expected: np.ndarray, tmp_path: Path
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 32:
            raise KeyboardInterrupt

    path = tmp_path / "features.npy"
    with pytest.raises(KeyboardInterrupt):
        cached_features(model, data, path, progress=stop)
    assert not path.exists()
    assert steps(model, data, path) == [40]
    np.testing.assert_array_equal(np.load(path), expected)
    assert steps(model, data, path) == []


@pytest.mark.parametrize(("every", "left"), [(0.0, [40]), (3600.0, [16, 32, 40])])
def test_kill_9_and_call_again(
    model: GaitModel, data: SequenceDataset, expected: np.ndarray, tmp_path: Path, every: float, left: list[int]
) -> None:
    """Rows that the record counts are kept; those behind it are computed again."""
    path = tmp_path / "features.npy"
    script = f"""
        import importlib.util, os, signal, sys, torch
        spec = importlib.util.spec_from_file_location("helpers", {str(Path(__file__))!r})
        helpers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        torch.set_num_threads(1)
        helpers.feature_file.RECORD_EVERY = {every}

        def kill(done, total):
            if done == 32:
                os.kill(os.getpid(), signal.SIGKILL)

        helpers.cached_features(helpers.network(), helpers.walks(), {str(path)!r}, progress=kill)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL and not path.exists()
    assert steps(model, data, path) == left
    np.testing.assert_array_equal(np.load(path), expected)


def test_another_model_or_other_data_is_built_anew(model: GaitModel, data: SequenceDataset, tmp_path: Path) -> None:
    path, everything = tmp_path / "features.npy", [16, 32, 40]
    assert steps(model, data, path) == everything
    renamed = SequenceDataset(data.sequences, data.identities[::-1], data.views, data.types)
    assert steps(network(), renamed, path) == []  # the same network and frames; names change no feature
    order = np.r_[1, 0, 2:COUNT]
    for name, other_model, other_data, frames in (
        ("weights", network(seed=1), data, None),
        ("pixel", model, walks(changed=COUNT - 1), None),
        ("order", model, data.subset(order), None),
        ("frames", model, data, 1),
        ("count", model, data.subset(np.arange(39)), None),
    ):
        other = tmp_path / f"{name}.npy"
        cached_features(model, data, other)
        assert steps(other_model, other_data, other, frames) == [16, 32, len(other_data)], name
        assert steps(other_model, other_data, other, frames) == [], name
        np.testing.assert_array_equal(np.load(other), embed_dataset(other_model, other_data, frames=frames))


def test_a_part_of_another_model_is_not_continued(data: SequenceDataset, tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "features.npy"
    with pytest.raises(KeyboardInterrupt):
        cached_features(network(seed=1), data, path, progress=stop)
    assert steps(network(), data, path) == [16, 32, 40]


def test_a_damaged_cache_is_built_anew(
    model: GaitModel, data: SequenceDataset, expected: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "features.npy"
    cached_features(model, data, path)
    os.truncate(path, path.stat().st_size // 2)
    assert steps(model, data, path) == [16, 32, 40] and "damaged" in caplog.text
    np.testing.assert_array_equal(np.load(path), expected)
    record = path.with_name("features.npy.json")
    record.write_text(record.read_text().replace('"done": 40', '"done": 16'))  # and no part file to go on with
    assert steps(model, data, path) == [16, 32, 40]
    path.unlink()
    assert steps(model, data, path) == [16, 32, 40]


def test_a_stop_before_the_first_row_leaves_nothing_that_counts(
    model: GaitModel, data: SequenceDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has its full length at once: the record of the damaged one must not vouch for it."""
    path = tmp_path / "features.npy"
    cached_features(model, data, path)
    os.truncate(path, 100)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureFile, "write", interrupted)
        cached_features(model, data, path)
    assert steps(model, data, path) == [16, 32, 40]


def test_a_foreign_file_is_refused(model: GaitModel, data: SequenceDataset, tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, np.zeros(3))
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=r"mine\.npy.*something else"):
        cached_features(model, data, path)
    (tmp_path / "mine.npy.json").write_text("[]")
    with pytest.raises(DatasetError, match="something else"):
        cached_features(model, data, path)
    assert path.read_bytes() == before
    with pytest.raises(DatasetError, match="cannot be written"):
        cached_features(model, data, path / "below")


def test_a_full_disk_leaves_no_file_under_the_final_name(
    model: GaitModel, data: SequenceDataset, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left = tmp_path / "features.npy", [3]
    real = os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch, pytest.raises(DatasetError, match="No space left") as caught:
        patch.setattr(feature_file.os, "fsync", full)
        cached_features(model, data, path)
    assert "features.npy" in str(caught.value) and not path.exists()
    cached_features(model, data, path)
    np.testing.assert_array_equal(np.load(path), expected)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with FeatureFile(tmp_path / "f.npy", (3, 2, 4), {"model": "m"}) as file:
        file.write(np.zeros((2, 2, 4), np.float32))
        for wrong in ((2, 2, 4), (1, 2, 5)):
            with pytest.raises(DatasetError, match="do not fit"):
                file.write(np.zeros(wrong, np.float32))
    assert json.loads((tmp_path / "f.npy.json").read_text())["done"] == 2


def test_a_second_writer_waits_and_finds_it_complete(model: GaitModel, data: SequenceDataset, tmp_path: Path) -> None:
    path, begun, go_on = tmp_path / "features.npy", threading.Event(), threading.Event()
    seen: dict[str, list[int]] = {"first": [], "second": []}

    def slow(done: int, _: int) -> None:
        seen["first"].append(done)
        begun.set()
        go_on.wait(30)

    def run(name: str) -> None:
        progress = slow if name == "first" else lambda done, _: seen["second"].append(done)
        cached_features(model, data, path, progress=progress)

    first = threading.Thread(target=run, args=("first",))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=run, args=("second",))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert seen == {"first": [16, 32, 40], "second": []}
