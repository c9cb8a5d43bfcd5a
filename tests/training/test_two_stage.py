"""The two-stage report: where errors are, on crowds where it is known where they are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gaitsdk.errors import CalibrationError, InputError, OptionError
from gaitsdk_training.evaluation.galleries import Plan
from gaitsdk_training.evaluation.two_stage import TwoStageReport, two_stage_report

TYPES = ("nm-01", "nm-05", "bg-01")
VIEWS = ("036", "090")
Crowd = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def crowd(people: int = 80, noise: float = 1.7) -> Crowd:
    """Features near one centre per person; the last dimension says who it is, and the distance hardly sees it."""
    rng = np.random.default_rng(5)
    rows = [(f"{i:04d}", kind, view) for i in range(people) for kind in TYPES for view in VIEWS]
    labels, types, views = (np.array([row[c] for row in rows]) for c in range(3))
    centres = rng.normal(size=(people, 4, 6)).repeat(len(TYPES) * len(VIEWS), axis=0)
    seen = centres + noise * rng.normal(size=centres.shape)
    mark = np.tile((labels.astype(float) * 1e-4)[:, None, None], (1, 4, 1))
    return np.concatenate([seen, mark], axis=2).astype(np.float32), labels, types, views


def oracle(probe: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """0 for the mate, 1 for everybody else."""
    apart = np.abs(probe[:, None, 0, -1] - candidates[:, :, 0, -1])
    return (apart > 5e-5).astype(np.float32)


def same(probe: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The shortlist's distance again."""
    return np.linalg.norm(probe[:, None] - candidates, axis=-1).mean(-1)


def report(data: Crowd, reranker: Any, **options: Any) -> TwoStageReport:
    given = {"gallery_size": 25, "fpirs": (0.2, 0.01), "lengths": (2, 5, 10, 50), "plan": Plan(galleries=3), "k": 4}
    return two_stage_report(*data, reranker=reranker, **{**given, **options})


@pytest.fixture(scope="module")
def data() -> Crowd:
    return crowd()


def test_an_oracle_leaves_the_shortlists_errors_only(data: Crowd) -> None:
    found = report(data, oracle)
    assert [stage.k for stage in found.reranked] == [2, 4, 5, 10], "50 is longer than the gallery"
    recalls = []
    for stage in found.reranked:
        assert stage.recall is not None and stage.recall.value is not None
        recalls.append(stage.recall.value)
        assert stage.rank1.value == stage.recall.value
        missed = stage.points[0].fnir
        assert missed.value == pytest.approx(1 - stage.recall.value)
        assert stage.points[0].threshold == pytest.approx(1.0, abs=1e-6) and stage.points[0].threshold < 1.0
        # No stranger comes below it: none of 40 shows no rate below 7.5 %.
        assert stage.points[0].fpir.value is None and stage.points[0].fpir.events == 0
    assert recalls == sorted(recalls) and recalls[0] < 0.8 and recalls[-1] > recalls[0]
    assert found.initial.rank1.value is not None and found.initial.rank1.value < recalls[0]
    for stage in (found.initial, *found.reranked):
        point = stage.points[1]
        assert point.target == 0.01 and point.threshold is None and point.fnir.value is None
        assert point.fnir.reason == "not supported: n=29 people show no rate below 10.3 %", "strangers of three draws"


def test_a_reranker_that_changes_nothing_changes_no_figure(data: Crowd) -> None:
    found = report(data, same)
    for stage in found.reranked:
        assert stage.rank1 == found.initial.rank1
        assert stage.points[0].fnir.value == pytest.approx(found.initial.points[0].fnir.value, abs=0.02)
    # The threshold was set on other people, and holds for these about as it was meant.
    attained = found.initial.points[0].fpir
    assert attained.value is not None and attained.low is not None and attained.high is not None
    assert 0.1 < attained.value < 0.35 and attained.low < attained.value < attained.high
    assert found.calibration_people + found.test_people == 80


def test_rows_notes_and_json(data: Crowd) -> None:
    found = report(data, oracle)
    rows = found.rows()
    assert len(rows) == 4 and {len(row) for row in rows} == {len(found.columns)} == {8}
    assert found.columns[:4] == ["K", "recall@K", "Rank-1 initial", "Rank-1"] and "FNIR at FPIR 20 %" in found.columns
    assert rows[0][0] == "2" and rows[0][1].endswith(")") and " % (" in rows[0][1] and rows[0][-2:] == ["-", "-"]
    notes = "\n".join(found.notes())
    assert "galleries of 25 entries" in notes and "40 people, figures from 40 others" in notes
    assert notes.count("not supported: n=29") == 1 and "FNIR at FPIR 1 % (initial, K=2, K=4, K=5, K=10): not" in notes
    told = json.loads(json.dumps(found.to_dict()))
    assert told["reranked"][1]["recall"]["value"] == found.reranked[1].recall.value  # type: ignore[union-attr]
    assert told["initial"]["points"][1]["threshold"] is None and "cmc" in told["initial"]
    # Nobody can read a rate from the curve that the sample does not support.
    assert min(told["initial"]["det"]["fpir"]) >= told["initial"]["det"]["fpir_floor"]


def test_the_same_seed_gives_the_same_report_and_another_another(data: Crowd) -> None:
    assert report(data, same).to_dict() == report(data, same).to_dict()
    other = report(data, same, plan=Plan(galleries=3, seed=1))
    assert other.to_dict()["initial"] != report(data, same).to_dict()["initial"]


def test_progress_counts_galleries(data: Crowd) -> None:
    seen: list[tuple[int, int]] = []
    report(data, same, lengths=(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]  # 2 stages, 2 halves, 3 galleries


def test_what_cannot_be_reported_is_refused(data: Crowd) -> None:
    with pytest.raises(InputError, match="one stage only"):
        report(data, None)
    with pytest.raises(CalibrationError, match="at least 41"):
        report(data, same, gallery_size=40)
    with pytest.raises(OptionError, match="rate"):
        report(data, same, fpirs=(0.0,))
    with pytest.raises(OptionError, match="k"):
        report(data, same, k=0)
    with pytest.raises(OptionError, match="protocol"):
        report(data, same, protocol="casib")
    few = np.isin(data[1], ["0000", "0001", "0002"])
    with pytest.raises(CalibrationError, match="halve"):
        report(tuple(each[few] for each in data), same)  # type: ignore[arg-type]
