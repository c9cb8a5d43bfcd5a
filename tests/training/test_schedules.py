"""What moves with the training: Eq. 3 in both readings, s_t, and the fusion factors of Table IX."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from gaitsdk.errors import OptionError
from gaitsdk_training.losses import FUSIONS, delta_at, fusion_at, smoothness_at


@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 0.99, 1.0])
def test_delta_is_equation_3_in_both_readings(share: float) -> None:
    printed = 0.1 + 0.5 * (1 + math.cos(share / 2 * math.pi)) * 1.4
    meant = 0.1 + 0.5 * (1 + math.cos(share * math.pi)) * 1.4
    assert delta_at(share * 800, 800, progress="printed") == pytest.approx(printed, rel=1e-12)
    assert delta_at(share * 800, 800, progress="to_minimum") == pytest.approx(meant, rel=1e-12)


def test_delta_runs_from_1_5_to_0_8_as_printed_and_to_the_minimum_in_the_other_reading() -> None:
    for progress, last in (("printed", 0.8), ("to_minimum", 0.1)):
        values = [delta_at(t, 100, progress=progress) for t in range(101)]
        assert values[0] == pytest.approx(1.5) and values[-1] == pytest.approx(last)
        assert all(a > b for a, b in pairwise(values))
        assert delta_at(250, 100, progress=progress) == values[-1]  # a run may outlast its plan
    assert delta_at(30, 100, delta_min=0.5, epsilon=0.0) == 0.5


@pytest.mark.parametrize("kind", FUSIONS)
def test_every_fusion_factor_rises_within_0_and_1(kind: str) -> None:
    values = [fusion_at(t, 400, kind) for t in range(401)]
    assert all(a <= b for a, b in pairwise(values))
    assert values[0] >= 0.0 and values[-1] == pytest.approx(1.0) == fusion_at(1000, 400, kind)
    assert [smoothness_at(t, 400, kind) for t in range(401)] == values


@pytest.mark.parametrize(
    ("kind", "quarter"),
    [
        ("equal", 1.0),
        ("multi-step", 0.5),
        ("logarithmic", math.log(1 + (math.e - 1) / 4)),
        ("exponential", (math.exp(0.25) - 1) / (math.e - 1)),
        ("polynomial", 1 / 16),
        ("sine", math.sin(math.pi / 8)),
    ],
)
def test_fusion_factors_at_a_quarter_of_the_run(kind: str, quarter: float) -> None:
    assert fusion_at(25, 100, kind) == pytest.approx(quarter, rel=1e-12)


def test_the_papers_factors_are_sines_and_the_default() -> None:
    for t in (0, 1, 37, 80):
        assert fusion_at(t, 80) == smoothness_at(t, 80) == pytest.approx(math.sin(math.pi * t / 160), abs=1e-15)


def test_impossible_schedules_are_refused() -> None:
    for call in (
        lambda: fusion_at(1, 10, "cosine"),
        lambda: fusion_at(1, 0),
        lambda: fusion_at(-1, 10),
        lambda: fusion_at(float("nan"), 10),
        lambda: smoothness_at(1, -5),
        lambda: delta_at(1, 10, progress="backwards"),
        lambda: delta_at(1, 10, delta_min=0.0),
        lambda: delta_at(1, 10, epsilon=-1.0),
    ):
        with pytest.raises(OptionError):
            call()
