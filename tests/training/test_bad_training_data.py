"""What `gaitsdk train backbone` says to data that cannot teach, and what it does with data that can only partly."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitsdk import Bundle, synthetic
from gaitsdk.cli import main
from gaitsdk.errors import DatasetError
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.features import check_validation, cross_view_rank1

TINY = {"channels": [8, 8, 16, 16], "strides": [1, 2, 1, 1], "stem_stride": 2, "dims": 16, "strips": 4}


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tree(root: Path, sequences: dict[str, list[tuple[str, str]]]) -> Path:
    """identity -> (type, view) of its sequences."""
    for identity, walks in sequences.items():
        for kind, view in walks:
            folder = root / identity / kind / view
            folder.mkdir(parents=True)
            np.save(folder / f"{view}.npy", synthetic.sequence(int(identity), "nm-01", view, frames=6))
    return root


#: Two walks from two views each.
FOUR = [(kind, view) for kind in ("nm-01", "bg-01") for view in ("000", "090")]
SMALL = [
    "--set", f"options={json.dumps(TINY)}", "--set", "p=2", "--set", "k=2", "--set", "frames=3", "--steps", 2,
    "--device", "cpu", "--workers", 0, "--validation", "0.4", "--json",
]  # fmt: skip


def call(data: Path, out: Path, *arguments: object) -> int:
    """The exit code of `gaitsdk train backbone`, with this package's verbs only."""

    def own(group: str) -> list[EntryPoint]:
        return [point for point in entry_points(group=group) if point.value.startswith("gaitsdk_training.")]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.setattr("gaitsdk.cli.entry_points", own)
        patch.setenv("COLUMNS", "1000")
        main(["train", "backbone", "--data", str(data), "--out", str(out), *map(str, (*SMALL, *arguments))])
    code = exit_.value.code
    return 0 if code is None else int(code)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ({"001": FOUR}, [], "too few identities to hold some out for validation; got 1 identities"),
        ({"001": FOUR, "002": FOUR, "003": FOUR}, [], "at least two on either side"),
        ({f"{i:03d}": FOUR for i in range(1, 6)}, ["--set", "p=4"], "got 3 identities; expected at least p=4"),
        ({f"{i:03d}": FOUR for i in range(1, 6)}, ["--partition"], "training part is there|no usable sequence"),
    ],
)  # fmt: skip
def test_too_few_people_are_refused_before_anything_is_written(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    sequences: dict[str, list[tuple[str, str]]],
    options: list[str],
    message: str,
    dry: list[str],
) -> None:
    data = tree(tmp_path / "tree", sequences)
    if options == ["--partition"]:
        (tmp_path / "list.json").write_text(json.dumps({"TRAIN_SET": ["901", "902"], "TEST_SET": ["001"]}))
        options = [*options, str(tmp_path / "list.json")]
    assert call(data, tmp_path / "run", *options, *dry) == 1
    error = capfd.readouterr().err
    assert any(part in error for part in message.split("|")) and "Traceback" not in error, error
    assert not (tmp_path / "run").exists()


def test_validation_without_anybody_to_find_is_refused_before_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sequences = {f"{i:03d}": FOUR for i in range(1, 4)} | {f"{i:03d}": [("nm-01", "000")] for i in (4, 5)}
    assert call(tree(tmp_path / "tree", sequences), tmp_path / "run") == 1
    assert "no validation sequence has another of its identity to find" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_absent_broken_or_alone_is_told_and_the_rest_trains(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sequences = {f"{i:03d}": FOUR for i in (1, 3, 4, 5)} | {"002": [("nm-01", "000")]}
    data = tree(tmp_path / "tree", sequences)
    broken = data / "003" / "bg-01" / "090" / "090.npy"
    np.save(broken, np.full((6, 64, 64), np.nan, np.float32))
    (tmp_path / "list.json").write_text(json.dumps({"TRAIN_SET": [*sequences, "077"], "TEST_SET": []}))
    assert call(data, tmp_path / "run", "--partition", tmp_path / "list.json") == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["identities"], report["sequences"], report["skipped"]) == (3, 8, 1)
    assert f"{broken}: " in caplog.text and "NaN or infinite" in caplog.text
    assert "1 of 6 wanted identities without a usable sequence (077)" in caplog.text
    assert "1 of 3 identities have a single sequence" in caplog.text
    assert Bundle.load(tmp_path / "run" / "model.gait").manifest.training["skipped"] == 1


def blank(identities: str, types: str, views: str) -> SequenceDataset:
    return SequenceDataset(np.zeros((len(identities), 1, 64, 64), np.uint8), list(identities), list(types), list(views))


@pytest.mark.parametrize(
    ("identities", "types", "views", "usable"),
    [
        ("aabb", "nnnn", "0101", True),
        ("abab", "nnnn", "0011", True),
        ("aabb", "nnnn", "0000", True),  # a single view: leave one out
        ("aabb", "nbnb", "0000", True),
        ("aabb", "nbnb", "0101", True),
        ("aabb", "nnbb", "0101", False),  # both cameras film one walk
        ("aabb", "nbnb", "0011", False),  # each person from one view only
        ("abcd", "nnnn", "0101", False),
        ("aabb", "nnnb", "0000", True),  # b alone has walks of two types
    ],
)
def test_it_is_known_in_advance_whether_validation_can_be_measured(
    identities: str, types: str, views: str, usable: bool
) -> None:
    data = blank(identities, types, views)
    features = np.random.default_rng(0).random((4, 2, 3), np.float32)
    if usable:
        check_validation(data)
        cross_view_rank1(features, data)
        return
    for refused in (lambda: check_validation(data), lambda: cross_view_rank1(features, data)):
        with pytest.raises(DatasetError, match="no validation sequence"):
            refused()


def test_the_library_checks_validation_too(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no validation sequence"):
        train_backbone(
            blank("aabb", "nnnn", "0101"), BackboneTraining(options=TINY, p=2, k=2), tmp_path / "run",
            validation=blank("abcd", "nnnn", "0101"),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
