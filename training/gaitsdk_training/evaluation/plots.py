"""Figures of an evaluation: spider plot (CarGait's Figure 5), DET, CMC and score histograms.

They need matplotlib (the extra `plots`) and give its `Figure`: `gaitsdk.pictures.save_figure(figure, path)` writes it.
Curves are objects or mappings with the arrays that each function names, such as those of `evaluation.curves`. Methods
differ in colour (Okabe and Ito's, which people with any colour vision tell apart), line style and marker.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import InputError, OptionError
from gaitsdk.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

Values = NDArray[np.float64]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SCALES = ("probit", "log", "linear")
#: Rates outside are drawn at these: a probit or log axis has no place for 0 and 1.
SMALLEST, LARGEST = 1e-6, 1.0 - 1e-6
_LINEAR_TICKS = tuple(step / 20.0 for step in range(21))
_LOG_TICKS = (1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_TICKS = (1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
_UNSUPPORTED: dict[str, Any] = {"facecolor": "#eeeeee", "edgecolor": "#bbbbbb", "hatch": "///", "linewidth": 0}
#: Up to so many methods a spider plot has room for the numbers beside the names of its axes.
_NUMBERED = 3


def spider(
    values: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    low: float = 0.0,
    high: float = 100.0,
    label: str = "Rank-1, %",
) -> Figure:
    """One polygon per method, one axis per condition, data set or backbone.

    Args:
        values: method -> axis -> figure. Every method has every axis, at least three.
        title: what was measured, on what data, and how many probes.
        low, high: of the radial axes; a low above 0 makes differences look larger than they are.
        label: what the figures are.

    Raises:
        InputError: an axis is missing, fewer than three axes, or a figure that is not finite.
        OptionError: low is not below high. MissingDependencyError: matplotlib is not installed.
    """
    return spiders({"": values}, title=title, low=low, high=high, label=label)


def spiders(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    title: str,
    low: float = 0.0,
    high: float = 100.0,
    label: str = "Rank-1, %",
) -> Figure:
    """Several spider plots beside each other, such as one per data set: name -> method -> axis -> figure.

    Arguments and errors as for `spider`; the panels have the same methods.
    """
    if not low < high:
        raise OptionError("no range", where="low, high", got=f"{low} and {high}", expected="low < high")
    if not panels:
        raise InputError("nothing to draw", where="panels", got="none")
    checked = {name: _spider_table(values, name) for name, values in panels.items()}
    methods = list(next(iter(checked.values()))[1])
    for name, (_, table) in checked.items():
        if list(table) != methods:
            raise InputError("panels have the same methods", where=name, got=list(table), expected=str(methods))
    figure = new_figure(5.6 * len(panels), 5.9)
    figure.suptitle(title)
    for position, (name, (names, table)) in enumerate(checked.items(), 1):
        axes: Any = figure.add_subplot(1, len(panels), position, projection="polar")
        _draw_spider(axes, names, table, low, high)
        axes.set_title(name, fontsize=11, pad=18)
    handles, texts = axes.get_legend_handles_labels()
    order = ", numbers in this order" if len(methods) <= _NUMBERED else ""
    shown = f"{label}{order}; axes from {low:g} to {high:g}"
    figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(methods)), title=shown, frameon=False)
    return figure


def det(
    curves: Mapping[str, Any], *, title: str, scale: str = "probit", x_label: str = "", y_label: str = ""
) -> Figure:
    """Detection error trade-off: FNIR against FPIR (or FNMR against FMR), a step curve per method.

    Args:
        curves: method -> object or mapping with `fpir [m]` and `fnir [m]` (or `fmr`, `fnmr`), fractions; optional
            `low [m]`, `high [m]` = confidence band of the second; optional `fpir_floor`, `fnir_floor` (or `floor` for
            both) = what the sample can support: smaller rates are not drawn, and that part of the picture is grey.
        title: what was measured, on what data, and how many probes.
        scale: "probit" (normal deviates, the usual one of DET curves), "log" or "linear"; rates of 0 and 1, which the
            first two cannot show, stand at the edge.
        x_label, y_label: default by the names of the arrays.

    Raises:
        InputError: shapes differ, or a rate outside 0..1. OptionError: unknown scale.
        MissingDependencyError: matplotlib is not installed.
    """
    if scale not in SCALES:
        raise OptionError("no such scale", where="scale", got=repr(scale), expected=", ".join(SCALES))
    if not curves:
        raise InputError("nothing to draw", where="curves", got="none")
    checked = {name: _det_arrays(curve, name) for name, curve in curves.items()}
    kinds = {each["kind"] for each in checked.values()}
    if len(kinds) > 1:
        raise InputError("searches and pairs share no axes", where="curves", got="both fpir and fmr", fix="draw two")
    pairs = kinds == {"fmr"}
    figure = new_figure(6.6, 6.2)
    axes = figure.subplots()
    floors = [min(each[axis] for each in checked.values()) for axis in ("x_floor", "y_floor")]
    for number, (name, curve) in enumerate(checked.items()):
        _draw_det(axes, name, curve, number)
    rates = np.concatenate([np.stack([each["x"], each["y"]]) for each in checked.values()], axis=1)
    if scale != "linear":  # points at 0 or 1 have no place and do not widen the other axis
        rates = rates[:, ((rates > SMALLEST) & (rates < LARGEST)).all(axis=0)]
    shaded = [
        _scale_axis(axes, axis, scale, values, floor) for axis, values, floor in zip("xy", rates, floors, strict=True)
    ]
    axes.set_xlabel(
        x_label or ("FMR: impostor pairs accepted, %" if pairs else "FPIR: non-mated searches with an answer, %")
    )
    axes.set_ylabel(
        y_label or ("FNMR: genuine pairs refused, %" if pairs else "FNIR: mated searches without the mate, %")
    )
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    if any(shaded):
        axes.fill_between([], [], **_UNSUPPORTED, label="too few people to say")
    axes.legend(frameon=True, fontsize=9)
    return figure


def cmc(curves: Mapping[str, Any], *, title: str, ranks: int = 20) -> Figure:
    """Cumulative match characteristic: how many probes have a mate among the first r.

    Args:
        curves: method -> object or mapping with `accuracy [r]` (fractions; element i is rank i + 1), optional
            `low [r]`, `high [r]` = confidence band, `probes` = how many.
        title: what was measured, on what data, and how many probes.
        ranks: how many to show.

    Raises:
        InputError: shapes differ, or a rate outside 0..1. OptionError: ranks below 1.
        MissingDependencyError: matplotlib is not installed.
    """
    if ranks < 1:
        raise OptionError("nothing to show", where="ranks", got=ranks, expected="at least 1")
    if not curves:
        raise InputError("nothing to draw", where="curves", got="none")
    figure = new_figure(6.8, 4.8)
    axes = figure.subplots()
    shown = 1
    for number, (name, curve) in enumerate(curves.items()):
        rates = 100.0 * _rates(curve, ("accuracy",), name)[1][:ranks]
        shown = max(shown, len(rates))
        steps = np.arange(1, len(rates) + 1)
        style = _style(number)
        if (band := _band(curve, name, None)) is not None:
            low, high = (100.0 * each[:ranks] for each in band)
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        counted = "" if (probes := _entry(curve, "probes")) is None else f", n = {probes:,}"
        axes.plot(steps, rates, label=f"{name} ({rates[0]:.1f} % at rank 1{counted})", **style, markersize=5)
    axes.set_xlabel("rank")
    axes.set_ylabel("probes with a mate up to this rank, %")
    axes.set_xticks(np.arange(1, shown + 1) if shown <= 20 else np.linspace(1, shown, 11).round())
    bottom = axes.get_ylim()[0]
    axes.set_ylim(bottom, 100.0 + 0.03 * (100.0 - bottom))
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100.0])
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def score_histogram(
    mated: ArrayLike, non_mated: ArrayLike, *, title: str, threshold: float | None = None, bins: int = 50
) -> Figure:
    """How distances of mated and of non-mated comparisons are spread, and where the threshold cuts them.

    Args:
        mated: `[n]` distances that should be small: probe and mate, or genuine pairs.
        non_mated: `[m]` distances that should be large: best candidate of a person who is not enrolled, or impostors.
        title: what was measured, and on what data.
        threshold: known means distance <= threshold; None = no line.
        bins: over the range of both.

    Raises:
        InputError: nothing in one of them, or not finite. OptionError: bins below 1, or an impossible threshold.
        MissingDependencyError: matplotlib is not installed.
    """
    if bins < 1:
        raise OptionError("no bins", where="bins", got=bins, expected="at least 1")
    if threshold is not None and not np.isfinite(threshold):
        raise OptionError("not a usable threshold", where="threshold", got=threshold, expected="finite, or None")
    scores = {name: _scores(each, name) for name, each in (("mated", mated), ("non_mated", non_mated))}
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins).tolist()
    for (name, values), colour, hatch in zip(scores.items(), COLOURS, ("", "////"), strict=False):
        weights = np.full(len(values), 100.0 / len(values))
        text = f"{name.replace('_', '-')}, n = {len(values):,}"
        look: dict[str, Any] = {
            "facecolor": f"{colour}59",
            "edgecolor": colour,
            "hatch": hatch,
        }  # 59: about a third opaque
        axes.hist(values, edges, weights=weights, histtype="stepfilled", label=text, **look)
    if threshold is not None:
        # Counts and not percentages: a rate may be smaller than what the sample can support.
        missed, accepted = int((scores["mated"] > threshold).sum()), int((scores["non_mated"] <= threshold).sum())
        text = f"threshold {threshold:.3f}: {missed:,} mated above,\n{accepted:,} non-mated at or below"
        axes.axvline(threshold, color="black", linestyle="--", label=text)
    axes.set_xlabel("distance (smaller is more alike)")
    axes.set_ylabel("share of the scores in a bin, %")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=9)
    return figure


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def _spider_table(values: Mapping[str, Mapping[str, float]], panel: str) -> tuple[list[str], dict[str, Values]]:
    """Names of the axes, and each method's figures in that order."""
    where = f"panel {panel!r}" if panel else "values"
    names = list(next(iter(values.values()), {}))
    if len(names) < 3:
        raise InputError("a spider plot needs three axes", where=where, got=names, fix="draw bars instead")
    table = {}
    for method, row in values.items():
        if set(row) != set(names):
            odd = sorted(set(row) ^ set(names))
            raise InputError("every method needs every axis", where=f"{where}, {method}", got=f"differs in {odd}")
        table[method] = np.array([row[name] for name in names], np.float64)
        if not np.isfinite(table[method]).all():
            raise InputError("a figure is not finite", where=f"{where}, {method}", got=table[method].tolist())
    return names, table


def _draw_spider(axes: PolarAxes, names: list[str], table: Mapping[str, Values], low: float, high: float) -> None:
    angles = np.linspace(0.0, 2.0 * np.pi, len(names), endpoint=False)
    axes.set_theta_offset(np.pi / 2.0)
    axes.set_theta_direction(-1)
    for number, (method, figures) in enumerate(table.items()):
        style = _style(number)
        closed = np.append(figures, figures[0])
        axes.plot(np.append(angles, angles[0]), closed, label=method, **style, markersize=5, linewidth=1.6)
        if len(table) <= _NUMBERED:
            axes.fill(angles, figures, color=style["color"], alpha=0.06)
    axes.set_ylim(low, high)
    axes.set_yticks(np.linspace(low, high, 5)[1:])
    axes.tick_params(axis="y", labelsize=7, labelcolor="#444444")
    for text in axes.get_yticklabels():
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
        text.set_zorder(5)
    axes.set_rlabel_position(180.0 / len(names))  # between the first two axes
    texts = list(names)
    if len(table) <= _NUMBERED:
        rows = [" / ".join(f"{figures[i]:.1f}" for figures in table.values()) for i in range(len(names))]
        texts = [f"{name}\n{row}" for name, row in zip(names, rows, strict=True)]
    axes.set_xticks(angles, texts, fontsize=9)
    axes.tick_params(axis="x", pad=4)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = round(float(np.sin(angle)), 6)  # away from the circle on either side, centred above and below
        text.set_horizontalalignment("center" if side == 0.0 else "left" if side > 0.0 else "right")
        text.set_verticalalignment("bottom" if np.cos(angle) > 0.5 else "top" if np.cos(angle) < -0.5 else "center")


def _entry(curve: Any, name: str) -> Any:
    """A field of a mapping or of an object, None where there is none."""
    return curve.get(name) if isinstance(curve, Mapping) else getattr(curve, name, None)


def _rates(curve: Any, names: tuple[str, ...], method: str) -> tuple[str, Values]:
    """The first of these fields that is there, and its values in 0..1."""
    found = next((name for name in names if _entry(curve, name) is not None), None)
    if found is None:
        raise InputError("the curve lacks an array", where=method, expected=" or ".join(names))
    values = np.asarray(_entry(curve, found), np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0.0) & (values <= 1.0)).all():
        got = f"shape {list(values.shape)}" if values.ndim != 1 or not len(values) else "values outside"
        raise InputError("not rates", where=f"{method}, {found}", got=got, expected="[m] fractions in 0..1")
    return found, values


def _band(curve: Any, method: str, order: NDArray[np.int64] | None) -> tuple[Values, Values] | None:
    if _entry(curve, "low") is None or _entry(curve, "high") is None:
        return None
    low, high = (_rates(curve, (name,), method)[1] for name in ("low", "high"))
    length = len(_rates(curve, ("accuracy", "fnir", "fnmr"), method)[1])
    if len(low) != length or len(high) != length or (low > high).any():
        got = f"{len(low)} and {len(high)} values for {length} points"
        raise InputError("not a confidence band", where=method, got=got, expected="low <= high, one pair per point")
    return (low, high) if order is None else (low[order], high[order])


def _scores(values: ArrayLike, where: str) -> Values:
    scores = np.asarray(values, np.float64).ravel()
    if not len(scores) or not np.isfinite(scores).all():
        got = f"{int((~np.isfinite(scores)).sum())} of {len(scores)} not finite" if len(scores) else "none"
        raise InputError("unusable distances", where=where, got=got, expected="at least one, all finite")
    return scores


def _det_arrays(curve: Any, method: str) -> dict[str, Any]:
    """The points that the sample supports, sorted, and where its support ends."""
    x_name, x = _rates(curve, ("fpir", "fmr"), method)
    _, y = _rates(curve, ("fnir", "fnmr"), method)
    if len(x) != len(y):
        raise InputError("the rates do not belong together", where=method, got=f"{len(x)} and {len(y)} points")
    floors = [_entry(curve, name) for name in (f"{x_name}_floor", "fnir_floor" if x_name == "fpir" else "fnmr_floor")]
    both = _entry(curve, "floor")
    x_floor, y_floor = (float(each if each is not None else both or 0.0) for each in floors)
    order = np.lexsort((-y, x))  # the second error never rises with the first
    order = order[(x[order] >= x_floor - 1e-9) & (y[order] >= y_floor - 1e-9)]
    return {
        "kind": x_name, "x": x[order], "y": y[order], "band": _band(curve, method, order),
        "x_floor": x_floor, "y_floor": y_floor,
    }  # fmt: skip


def _draw_det(axes: Axes, name: str, curve: Mapping[str, Any], number: int) -> None:
    style = _style(number)
    x, y = (np.clip(curve[axis], SMALLEST, LARGEST) for axis in "xy")
    if curve["band"] is not None:
        low, high = (np.clip(each, SMALLEST, LARGEST) for each in curve["band"])
        axes.fill_between(x, low, high, step="post", color=style["color"], alpha=0.15, linewidth=0)
    text = name if len(x) else f"{name}: no point that the sample supports"
    axes.plot(x, y, drawstyle="steps-post", label=text, **style, markersize=5, markevery=max(1, len(x) // 8))


def _limits(values: Values, floor: float, scale: str) -> tuple[float, float]:
    """Of an axis: what is drawn, a little of the region without support, and no more of 0 and 1 than there is."""
    if scale == "linear":
        return 0.0, max(0.02, 1.05 * float(values.max(initial=floor)))
    low = floor if floor > 0.0 else float(values.min(initial=0.1))
    high = min(0.995, max(1.2 * float(values.max(initial=low)), 2.0 * low))
    return max(SMALLEST, 0.7 * low), high


def _scale_axis(axes: Axes, axis: str, scale: str, values: Values, floor: float) -> bool:
    """Probit, log or linear from what is drawn, ticks in percent; says whether a part is shaded as unsupported."""
    low, high = _limits(values, floor, scale)
    set_scale, set_limits = getattr(axes, f"set_{axis}scale"), getattr(axes, f"set_{axis}lim")
    if scale == "probit":
        normal = NormalDist()
        forward = np.vectorize(lambda rate: normal.inv_cdf(min(max(rate, SMALLEST), LARGEST)), otypes=[np.float64])
        set_scale("function", functions=(forward, np.vectorize(normal.cdf, otypes=[np.float64])))
    else:
        set_scale(scale)
    set_limits(low, high)
    wanted = {"probit": _TICKS, "log": _LOG_TICKS, "linear": _LINEAR_TICKS}[scale]
    ticks = [tick for tick in wanted if low <= tick <= high]
    getattr(axes, f"set_{axis}ticks")(ticks, [f"{100.0 * tick:g}" for tick in ticks])
    getattr(axes, f"{axis}axis").set_minor_locator(_no_ticks())
    if floor <= low:
        return False
    shade = axes.axvspan if axis == "x" else axes.axhspan
    shade(low, floor, **_UNSUPPORTED, zorder=0)
    return True


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
