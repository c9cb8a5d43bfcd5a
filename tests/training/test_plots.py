"""What the figures draw: the numbers that went in, on the scales that they name, and no rate without support."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from gaitsdk.errors import InputError, MissingDependencyError, OptionError
from gaitsdk.pictures import save_figure
from gaitsdk_training.evaluation.evaluate import choose, measure
from gaitsdk_training.evaluation.figures import check_plots, draw
from gaitsdk_training.evaluation.plots import cmc, det, score_histogram, spider, spiders
from gaitsdk_training.evaluation.request import Request

pytest.importorskip("matplotlib")

FPIR = np.array([0.0, 0.01, 0.02, 0.1, 0.5, 1.0])
FNIR = np.array([1.0, 0.4, 0.3, 0.1, 0.02, 0.0])


@dataclass(frozen=True)
class Curve:
    """The fields of `evaluation.curves.DetCurve`."""

    fpir: np.ndarray
    fnir: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    fpir_floor: float = 0.0
    fnir_floor: float = 0.0


def drawn(axes: Any) -> dict[str, np.ndarray]:
    """Legend text -> points of the line, [m, 2]."""
    return {line.get_label(): np.stack(line.get_data(), 1) for line in axes.get_lines()}


def test_det_draws_the_curve_in_any_order_and_form() -> None:
    shuffled = np.random.default_rng(0).permutation(len(FPIR))
    curves = {"initial": Curve(FPIR, FNIR), "cargait": {"fpir": FPIR[shuffled], "fnir": FNIR[shuffled] / 2}}
    axes = det(curves, title="4 people", scale="linear").axes[0]
    lines = drawn(axes)
    np.testing.assert_allclose(lines["initial"], np.stack([FPIR, FNIR], 1), atol=1e-6)
    np.testing.assert_allclose(lines["cargait"], np.stack([FPIR, FNIR / 2], 1), atol=1e-6)
    assert axes.get_title() == "4 people" and "FPIR" in axes.get_xlabel() and "FNIR" in axes.get_ylabel()
    first, second = axes.get_lines()
    for look in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first, look)() != getattr(second, look)(), "colour is never the only difference"
    pairs = det({"verify": {"fmr": FPIR, "fnmr": FNIR}}, title="pairs").axes[0]
    assert "FMR" in pairs.get_xlabel() and "FNMR" in pairs.get_ylabel()


def test_det_scales() -> None:
    axes = det({"a": Curve(FPIR, FNIR)}, title="x", scale="probit").axes[0]
    rates = np.array([0.01, 0.1, 0.5])
    np.testing.assert_allclose(
        axes.xaxis.get_transform().transform(rates), [NormalDist().inv_cdf(rate) for rate in rates], atol=1e-12
    )
    assert 0.0 < axes.get_xlim()[0] < 0.01 and axes.get_xlim()[1] < 1.0
    assert {"1", "10"} <= {text.get_text() for text in axes.get_xticklabels()}
    log = det({"a": Curve(FPIR, FNIR)}, title="x", scale="log").axes[0]
    assert log.get_xscale() == log.get_yscale() == "log"
    assert np.isfinite(drawn(log)["a"]).all(), "0 and 1 stand at the edge"
    with pytest.raises(OptionError, match="probit, log, linear"):
        det({"a": Curve(FPIR, FNIR)}, title="x", scale="square")


def test_det_draws_no_rate_without_support() -> None:
    curve = Curve(FPIR, FNIR, fpir_floor=0.02, fnir_floor=0.05)
    axes = det({"a": curve, "b": Curve(FPIR, FNIR, fpir_floor=0.03, fnir_floor=0.05)}, title="x").axes[0]
    lines = drawn(axes)
    np.testing.assert_allclose(lines["a"], [[0.02, 0.3], [0.1, 0.1]])
    np.testing.assert_allclose(lines["b"], [[0.1, 0.1]])
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "too few people to say" in texts
    nothing = det({"a": Curve(FPIR, FNIR, fpir_floor=0.9, fnir_floor=0.9)}, title="x").axes[0]
    assert any("no point" in text.get_text() for text in nothing.get_legend().get_texts())


def test_det_band() -> None:
    shuffled = np.random.default_rng(0).permutation(len(FPIR))
    fpir, fnir = FPIR[shuffled], FNIR[shuffled]
    curve = Curve(fpir, fnir, low=np.maximum(fnir - 0.05, 0.0), high=np.minimum(fnir + 0.1, 1.0))
    axes = det({"a": curve}, title="x", scale="linear").axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(1.0, abs=1e-5)
    assert [0.1, 0.2] in corners.round(6).tolist() and [0.1, 0.05] in corners.round(6).tolist()


def test_cmc() -> None:
    rates = np.array([0.5, 0.75, 0.875, 1.0])
    curves = {
        "initial": {"accuracy": rates / 2, "probes": 1200},
        "cargait": {"accuracy": rates, "low": rates * 0.9, "high": np.minimum(1.0, rates * 1.1)},
    }
    axes = cmc(curves, title="4 people", ranks=3).axes[0]
    lines = drawn(axes)
    np.testing.assert_allclose(lines["cargait (50.0 % at rank 1)"], [[1, 50], [2, 75], [3, 87.5]])
    np.testing.assert_allclose(lines["initial (25.0 % at rank 1, n = 1,200)"][:, 1], [25, 37.5, 43.75])
    np.testing.assert_allclose(axes.collections[0].get_paths()[0].vertices[:, 1].min(), 45.0)
    with pytest.raises(OptionError, match="ranks"):
        cmc(curves, title="x", ranks=0)


def test_histogram_counts_at_the_threshold() -> None:
    rng = np.random.default_rng(0)
    mated, others = rng.normal(1.0, 0.2, 400), rng.normal(2.0, 0.3, 1000)
    mated[0] = 1.4  # exactly at the threshold: not above
    axes = score_histogram(mated, others, title="x", threshold=1.4, bins=30).axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    above, below = int((mated > 1.4).sum()), int((others <= 1.4).sum())
    assert f"threshold 1.400: {above} mated above,\n{below} non-mated at or below" in texts
    assert "mated, n = 400" in texts and "non-mated, n = 1,000" in texts
    heights = [patch.get_xy()[:, 1].max() for patch in axes.patches]
    edges = np.histogram_bin_edges(np.concatenate([mated, others]), 30)
    assert heights[0] == pytest.approx(100 * np.histogram(mated, edges)[0].max() / 400)
    assert heights[1] == pytest.approx(100 * np.histogram(others, edges)[0].max() / 1000)
    assert len(score_histogram(mated, others, title="x").axes[0].get_lines()) == 0


FIGURES = {
    "initial": {"NM": 80.0, "BG": 70.0, "CL": 50.0, "mean": 66.7},
    "cargait": {"mean": 72.0, "CL": 60.5, "BG": 74.0, "NM": 81.5},
}


def test_spider() -> None:
    axes = spider(FIGURES, title="10 people", low=40.0).axes[0]
    lines = drawn(axes)
    np.testing.assert_allclose(lines["initial"][:, 1], [80, 70, 50, 66.7, 80])
    np.testing.assert_allclose(lines["cargait"][:, 1], [81.5, 74, 60.5, 72, 81.5])
    np.testing.assert_allclose(lines["cargait"][:4, 0], np.arange(4) * np.pi / 2)
    assert axes.get_ylim() == (40.0, 100.0)
    assert [text.get_text() for text in axes.get_xticklabels()][2] == "CL\n50.0 / 60.5"
    panels = {name: {method: dict(FIGURES[method]) for method in FIGURES} for name in ("Gait3D", "GREW")}
    figure = spiders(panels, title="two data sets")
    assert [each.get_title() for each in figure.axes] == ["Gait3D", "GREW"]
    assert len(figure.legends) == 1


BAD: dict[str, tuple[Any, str]] = {
    "no curve": (lambda: det({}, title="x"), "nothing to draw"),
    "no cmc": (lambda: cmc({}, title="x"), "nothing to draw"),
    "no panel": (lambda: spiders({}, title="x"), "nothing to draw"),
    "an array is missing": (lambda: det({"a": {"fpir": FPIR}}, title="x"), "fnir or fnmr"),
    "searches and pairs": (
        lambda: det({"a": Curve(FPIR, FNIR), "b": {"fmr": FPIR, "fnmr": FNIR}}, title="x"),
        "both fpir and fmr",
    ),
    "lengths differ": (lambda: det({"a": Curve(FPIR[:3], FNIR)}, title="x"), "3 and 6 points"),
    "percent": (lambda: det({"a": Curve(FPIR * 100, FNIR)}, title="x"), "fractions in 0..1"),
    "NaN": (lambda: cmc({"a": {"accuracy": [0.1, np.nan]}}, title="x"), "fractions in 0..1"),
    "empty": (lambda: cmc({"a": {"accuracy": []}}, title="x"), "not rates"),
    "band upside down": (lambda: det({"a": Curve(FPIR, FNIR, low=FNIR, high=FNIR * 0)}, title="x"), "low <= high"),
    "band too short": (lambda: det({"a": Curve(FPIR, FNIR, low=FNIR[:2], high=FNIR[:2])}, title="x"), "2 values"),
    "no scores": (lambda: score_histogram([], [1.0], title="x"), "mated"),
    "infinite score": (lambda: score_histogram([1.0], [np.inf], title="x"), "1 of 1 not finite"),
    "threshold NaN": (lambda: score_histogram([1.0], [2.0], title="x", threshold=np.nan), "threshold"),
    "no bins": (lambda: score_histogram([1.0], [2.0], title="x", bins=0), "bins"),
    "two axes": (lambda: spider({"a": {"NM": 1.0, "BG": 2.0}}, title="x"), "three axes"),
    "no method": (lambda: spider({}, title="x"), "three axes"),
    "an axis is missing": (lambda: spider({**FIGURES, "b": {"NM": 1.0}}, title="x"), "every axis"),
    "a figure is NaN": (lambda: spider({"a": {"x": 1.0, "y": np.nan, "z": 0.0}}, title="x"), "not finite"),
    "no range": (lambda: spider(FIGURES, title="x", low=100.0), "low < high"),
    "methods differ": (lambda: spiders({"p": FIGURES, "q": {"a": FIGURES["initial"]}}, title="x"), "same methods"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    call, match = BAD[case]
    with pytest.raises(InputError, match=match):
        call()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"gaitsdk\[plots\]"):
        cmc({"a": {"accuracy": [0.5]}}, title="x")


def test_figures_are_written(tmp_path: Path) -> None:
    figure = spider(FIGURES, title="x")
    for name in ("a.png", "a.pdf", "a.svg"):
        assert save_figure(figure, tmp_path / name).stat().st_size > 5000
    with pytest.raises(OptionError, match="picture's name"):
        save_figure(figure, tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("protocol", "kinds", "views", "pictures"),
    [
        ("oumvlp", ("00", "01"), ("000", "015", "030"), ["cmc", "spider"]),
        ("oumvlp", ("00", "01"), ("000", "015"), ["cmc"]),
        ("casiab-cross-view", ("nm-01", "nm-02", "bg-02", "cl-02", "bg-01"), ("000", "018", "036"), ["cmc"]),
        ("grew", ("01", "02"), ("x",), ["cmc"]),
    ],
)
def test_an_evaluation_draws_what_it_has(
    protocol: str, kinds: tuple[str, ...], views: tuple[str, ...], pictures: list[str], tmp_path: Path
) -> None:
    """A spider plot needs three axes of one kind: conditions, or the views of one condition."""
    names = [(f"{i:05d}", kind, view) for i in range(4) for kind in kinds for view in views]
    features = np.random.default_rng(0).standard_normal((len(names), 2, 3)).astype(np.float32)
    request = Request.check(features, *zip(*names, strict=True), None, 10, None, "euclidean")
    figures, table = measure(request, protocol)
    check_plots(tmp_path / "new")
    files = draw(tmp_path / "new", table, figures, None, choose(protocol), "none")
    assert files == [str(tmp_path / "new" / f"{name}.png") for name in pictures]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"{name}.png" for name in pictures]
