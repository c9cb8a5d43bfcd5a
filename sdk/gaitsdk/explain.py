"""Why the re-ranker says what it says of one pair: strip similarities before and after cross-attention, as in CarGait's
Figure 4, and the attention itself.

Shapes: s strips, d dimensions, h attention heads. Rows are the strips of the sequence named first.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import SMALLEST_NORM, check_features
from gaitsdk.errors import InputError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from gaitsdk.bundle import Bundle
    from gaitsdk.models.cargait import CarGait

Matrix = NDArray[np.float32]
Silhouette = NDArray[np.uint8]

#: Blue is low and yellow is high, readable in grey and without red-green vision.
SIMILARITY_COLOURS, ATTENTION_COLOURS = "viridis", "cividis"
BEFORE, AFTER = "#0072b2", "#d55e00"


@dataclass(frozen=True, eq=False)
class Explanation:
    """One pair, probe and candidate, before and after cross-attention. All arrays float32.

    Attributes:
        similarity_before: `[s, s]`, CS(F): cosine of the probe's strip i and the candidate's strip j in the backbone's
            feature maps F.
        similarity_after: `[s, s]`, CS(E): the same of the conditioned maps E_p and E_c (section 3 of the paper).
        attention_probe: `[h, s, s]`: row i = what the probe's strip i takes from each of the candidate's strips; rows
            sum to 1.
        attention_candidate: `[h, s, s]`: row i = what the candidate's strip i takes from each of the probe's strips.
        strip_distances_before: `[s]`, Euclidean distance of corresponding strips of F; their mean is the shortlist's
            distance.
        strip_distances_after: `[s]`, the same of E; their mean is the re-ranker's distance.
        probe_name, candidate_name: what the picture calls the two.
        probe_frame, candidate_frame: one silhouette `[S, S]` uint8 of each for the picture, or None. Not in `to_dict`.
    """

    similarity_before: Matrix
    similarity_after: Matrix
    attention_probe: Matrix
    attention_candidate: Matrix
    strip_distances_before: Matrix
    strip_distances_after: Matrix
    probe_name: str = "probe"
    candidate_name: str = "candidate"
    probe_frame: Silhouette | None = field(default=None, repr=False)
    candidate_frame: Silhouette | None = field(default=None, repr=False)

    @property
    def shortlist_distance(self) -> float:
        """Mean over strips of the Euclidean distance of F."""
        return float(self.strip_distances_before.mean())

    @property
    def distance(self) -> float:
        """The re-ranker's: mean over strips of the Euclidean distance of E. Never comparable with the other."""
        return float(self.strip_distances_after.mean())

    @property
    def attention_probe_mean(self) -> Matrix:
        """`[s, s]`, mean over heads."""
        mean: Matrix = self.attention_probe.mean(axis=0)
        return mean

    @property
    def attention_candidate_mean(self) -> Matrix:
        """`[s, s]`, mean over heads."""
        mean: Matrix = self.attention_candidate.mean(axis=0)
        return mean

    def to_dict(self) -> dict[str, Any]:
        """Everything but the silhouettes, JSON-able: arrays as nested lists, and both distances."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if not each.name.endswith("_frame")}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        return {"shortlist_distance": self.shortlist_distance, "distance": self.distance, **plain}

    def plot(self, heads: bool = True) -> Figure:
        """The matrices as one picture (needs matplotlib: the extra `plots`).

        Top: both silhouettes, CS(F) and CS(E) on one colour scale, the attention of both directions (mean over heads)
        on another, and each strip's share of the two distances.

        Args:
            heads: below it, the attention of every head.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from gaitsdk.pictures import new_figure

        count = len(self.attention_probe)
        height = 3.9
        per_row = min(count, 8)
        rows = -(-count // per_row) if heads else 0
        figure = new_figure(16.0, height + 2.05 * 2 * rows)
        figure.suptitle(
            f"{self.probe_name} and {self.candidate_name}: {len(self.similarity_before)} strips, "
            f"shortlist distance {self.shortlist_distance:.3f}, re-ranker's {self.distance:.3f}",
            parse_math=False,  # names are anybody's: dollars are no formula
        )
        if not heads:
            _draw_pair(figure, self)
            return figure
        parts: Any = figure.subfigures(2, 1, height_ratios=(height, 2.05 * 2 * rows))
        top, below = parts
        _draw_pair(top, self)
        _draw_heads(below, self, per_row, rows)
        return figure

    def save(self, path: str | os.PathLike[str], heads: bool = True) -> Path:
        """Writes the picture (.png, .jpg, .pdf, .svg) or the data (.json) and gives the path.

        Raises:
            OptionError: another suffix, or no such folder. InputError: the disk refuses. MissingDependencyError: as for
            `plot`.
        """
        from gaitsdk.pictures import FIGURE_SUFFIXES, check_picture_path, save_figure

        if Path(path).suffix.lower() != ".json":
            check_picture_path(path, FIGURE_SUFFIXES)  # before the drawing, which takes longer
            return save_figure(self.plot(heads), path)
        try:
            Path(path).write_text(json.dumps(self.to_dict()) + "\n")
        except OSError as error:
            raise InputError("the file cannot be written", where=str(path), got=str(error)) from error
        return Path(path)


def explain(
    bundle: Bundle,
    probe: Matrix,
    candidate: Matrix,
    *,
    names: tuple[str, str] = ("probe", "candidate"),
    frames: tuple[Silhouette | None, Silhouette | None] = (None, None),
) -> Explanation:
    """Explains one pair of feature maps with the bundle's CarGait, in PyTorch on the CPU.

    `Identification.explain` calls this. Call it yourself with what `Recognizer.embed` gives, also over Triton.

    Args:
        bundle: with CarGait weights.
        probe, candidate: F `[s, d]` float32 of this bundle's backbone.
        names: what the picture calls the two.
        frames: one silhouette `[S, S]` of each for the picture.

    Raises:
        MissingDependencyError: torch is not installed. OptionError: the bundle has no CarGait.
        BundleError: its weights were changed since it was loaded. InputError: not feature maps of this model.
    """
    pair = [
        check_features(each, where, (bundle.strips, bundle.dims))
        for where, each in (("probe", probe), ("candidate", candidate))
    ]
    network = _network(bundle)
    import torch  # is there: the network is made of it

    f_p, f_c = (torch.from_numpy(each.copy())[None] for each in pair)
    with torch.inference_mode():
        after = [each[0].numpy() for each in network.attend(f_p, f_c)]
        attention = [each[0].numpy() for each in network.attention(f_p, f_c)]
    return Explanation(
        similarity_before=_cosines(*pair),
        similarity_after=_cosines(*after),
        attention_probe=attention[0],
        attention_candidate=attention[1],
        strip_distances_before=_strip_distances(*pair),
        strip_distances_after=_strip_distances(*after),
        probe_name=names[0],
        candidate_name=names[1],
        probe_frame=frames[0],
        candidate_frame=frames[1],
    )


def _network(bundle: Bundle) -> CarGait:
    """The bundle's CarGait from its weights: compiled artefacts give distances alone."""
    from gaitsdk.manifest import check_file

    if bundle.manifest.reranker is None or bundle.manifest.reranker.name != "cargait":
        found = "no re-ranker" if bundle.manifest.reranker is None else bundle.manifest.reranker.name
        raise OptionError(
            "only CarGait has attention to explain",
            where=str(bundle.path),
            got=found,
            fix="use a bundle with CarGait weights, or train them: gaitsdk train reranker",
        )
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "explanations need PyTorch, which is not installed", where="explain", fix="pip install 'gaitsdk[torch]'"
        ) from error
    from gaitsdk.models.cargait import CarGait

    # A network that was trained again meanwhile would explain another answer than the one given.
    name = "reranker.safetensors"
    check_file(bundle.path, name, bundle.manifest.files[name])
    network = bundle.build_reranker()
    if not isinstance(network, CarGait):
        raise OptionError("only CarGait has attention to explain", where=str(bundle.path), got=type(network).__name__)
    return network


def _cosines(a: Matrix, b: Matrix) -> Matrix:
    """`[s, d]`, `[s, d]` -> `[s, s]`; a strip without direction (norm 0) has cosine 0 with everything."""
    a, b = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), SMALLEST_NORM) for each in (a, b))
    return np.clip(a @ b.T, -1.0, 1.0).astype(np.float32)


def _strip_distances(a: Matrix, b: Matrix) -> Matrix:
    distances: Matrix = np.linalg.norm(a - b, axis=1)
    return distances


def _draw_pair(figure: Figure | SubFigure, pair: Explanation) -> None:
    """Silhouettes, CS(F), CS(E), attention both ways, and each strip's share of the distances."""
    axes = figure.subplot_mosaic(
        [["probe", "before", "after", "from_probe", "from_candidate", "shares"],
         ["candidate", "before", "after", "from_probe", "from_candidate", "shares"]],
        width_ratios=(0.55, 1, 1, 1, 1, 0.8),
    )  # fmt: skip
    for key, name, frame in (
        ("probe", pair.probe_name, pair.probe_frame),
        ("candidate", pair.candidate_name, pair.candidate_frame),
    ):
        axes[key].axis("off")
        if frame is not None:
            axes[key].set_title(name, fontsize=9, parse_math=False)
            axes[key].imshow(frame, cmap="gray", vmin=0, vmax=255)
    similarities = (pair.similarity_before, pair.similarity_after)
    low, high = min(float(each.min()) for each in similarities), max(float(each.max()) for each in similarities)
    for key, title, values in zip(("before", "after"), ("CS(F), before", "CS(E), after"), similarities, strict=True):
        image = _heat_map(axes[key], values, title, "candidate", "probe", SIMILARITY_COLOURS, low, high)
    figure.colorbar(image, ax=[axes["before"], axes["after"]], location="bottom", label="cosine of strips", aspect=40)
    attention = (pair.attention_probe_mean, pair.attention_candidate_mean)
    high = max(float(each.max()) for each in attention)
    ways = (("from_probe", "probe attends to candidate", "candidate", "probe"),
            ("from_candidate", "candidate attends to probe", "probe", "candidate"))  # fmt: skip
    for (key, title, x, y), values in zip(ways, attention, strict=True):
        image = _heat_map(axes[key], values, title, x, y, ATTENTION_COLOURS, 0.0, high)
    label = f"attention, mean of {len(pair.attention_probe)} heads"
    figure.colorbar(image, ax=[axes["from_probe"], axes["from_candidate"]], location="bottom", label=label, aspect=40)
    _draw_shares(axes["shares"], pair)


def _heat_map(axes: Axes, values: Matrix, title: str, x: str, y: str, colours: str, low: float, high: float) -> Any:
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"strip of the {x}", fontsize=9)
    axes.set_ylabel(f"strip of the {y}", fontsize=9)
    ticks = np.arange(0, len(values), max(1, len(values) // 8))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=8)
    return image


def _draw_shares(axes: Axes, pair: Explanation) -> None:
    """Shares and not distances, because those of the two spaces cannot be compared."""
    strips = np.arange(len(pair.strip_distances_before))
    for name, values, colour, style in (
        ("before, F", pair.strip_distances_before, BEFORE, "o--"),
        ("after, E", pair.strip_distances_after, AFTER, "s-"),
    ):
        share = 100.0 * values / max(float(values.sum()), SMALLEST_NORM)
        axes.plot(share, strips, style, color=colour, label=name, markersize=4, linewidth=1)
    axes.set_ylim(len(strips) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_title("where they differ", fontsize=10)
    axes.set_xlabel("share of the distance, %", fontsize=9)
    axes.set_ylabel("strip of both", fontsize=9)
    axes.set_yticks(np.arange(0, len(strips), max(1, len(strips) // 8)))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)


def _draw_heads(figure: SubFigure, pair: Explanation, per_row: int, rows: int) -> None:
    """One small map per head and direction, on one colour scale."""
    ways = (("probe to candidate", pair.attention_probe), ("candidate to probe", pair.attention_candidate))
    high = max(float(values.max()) for _, values in ways)
    grid = figure.subplots(2 * rows, per_row, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for way, (name, values) in enumerate(ways):
        for head, weights in enumerate(values):
            axes = grid[way * rows + head // per_row, head % per_row]
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            image = axes.imshow(weights, cmap=ATTENTION_COLOURS, vmin=0.0, vmax=high, interpolation="nearest")
            axes.set_title(f"head {head + 1}", fontsize=8, pad=2)
            if head % per_row == 0:
                axes.set_ylabel(name, fontsize=8)
    figure.colorbar(image, ax=list(grid.flat), location="right", label="attention of one head", aspect=40)
