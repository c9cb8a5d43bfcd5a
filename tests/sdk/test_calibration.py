"""Which stored threshold is taken, and when that is worth a warning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from gaitsdk import calibration
from gaitsdk.errors import CalibrationError
from gaitsdk.file_lock import locked
from gaitsdk.manifest import Calibration


def entry(size: int, threshold: float, **changes: Any) -> Calibration:
    fields = {"task": "identify", "reranker": "cargait", "k": 10, "fpir": 0.01}
    return Calibration(gallery_size=size, threshold=threshold, **{**fields, **changes})


STORED = [
    entry(1000, 1.0),
    entry(100, 2.0),
    entry(300, 1.5),
    entry(1, 9.0, task="verify"),
    entry(50, 3.0, task="verify"),
]


def take(size: int, stored: list[Calibration] | None = None, **changes: Any) -> float | None:
    conditions = {"task": "identify", "reranker": "cargait", "k": 10, **changes}
    return calibration.threshold_for(STORED if stored is None else stored, gallery_size=size, **conditions)


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 2.0), (100, 2.0), (101, 1.5), (300, 1.5), (301, 1.0), (1000, 1.0), (50_000, 1.0)]
)
def test_the_next_larger_size_is_taken(size: int, expected: float) -> None:
    """More entries, more false positives: a threshold for a larger gallery is the safe one."""
    assert take(size) == expected


def test_nothing_stored_and_something_else_stored() -> None:
    assert take(10, []) is None
    assert take(10, [entry(1, 1.0, task="verify")]) is None
    for other in ({"reranker": "none"}, {"k": 5}):
        with pytest.raises(CalibrationError, match="another re-ranker"):
            take(10, **other)


def test_the_length_of_the_list_does_not_matter_where_there_is_none() -> None:
    stored = [entry(10, 1.0, reranker="none", k=0), entry(1, 2.0, task="verify", k=10)]
    assert take(10, stored, reranker="none", k=5) == 1.0
    assert take(1, stored, task="verify", k=3) == 2.0


def test_a_gallery_that_outgrew_its_calibration_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stored = [entry(700, 1.0)]
    with caplog.at_level(logging.WARNING):
        assert take(700, stored) == take(720, stored) == 1.0
        assert not caplog.records
        for size in (1000, 1001, 1300):
            take(size, stored)
        assert len(caplog.records) == 1
        assert "1000 entries" in caplog.text and "700" in caplog.text and "1.4 %" in caplog.text
        take(7000, stored)
        assert len(caplog.records) == 2 and "up to 10 %" in caplog.text


def test_merging_replaces_the_same_conditions_only() -> None:
    merged = calibration.merge(STORED, [entry(100, 7.0), entry(100, 8.0, k=5), entry(1, 9.5, task="verify", k=3)])
    found = {(each.task, each.k, each.gallery_size): each.threshold for each in merged}
    assert found[("identify", 10, 100)] == 7.0 and found[("identify", 5, 100)] == 8.0
    assert len(merged) == 6 and found[("verify", 3, 1)] == 9.5 and ("verify", 10, 1) not in found
    assert calibration.merge(merged, merged) == merged


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    import fcntl
    import os

    with locked(tmp_path):
        handle = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    with locked(tmp_path):
        pass


def test_a_manifest_of_before_is_read() -> None:
    """Bundles that were written without people and interval stay readable."""
    fields = {"task": "identify", "reranker": "cargait", "k": 10, "gallery_size": 5, "threshold": 1.0, "fpir": 0.01}
    old = Calibration.model_validate(fields)
    assert old.people == 0 and old.interval is None
    assert Calibration.model_validate(old.model_dump(mode="json")) == old
    with_interval = old.model_copy(update={"interval": (0.1, 0.2), "people": 7})
    assert Calibration.model_validate_json(with_interval.model_dump_json()) == with_interval
