"""Pictures: ranked lists before and after re-ranking, drawn with Pillow, and what figures of matplotlib share."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gaitsdk.errors import InputError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gaitsdk.results import Candidate, Identification

TILE = 96  # pixels of a silhouette
FRAME = 5  # pixels of the coloured rectangle
OUTER = TILE + 2 * FRAME
GAP = 10
TEXT = 30  # pixels for two lines below a silhouette
LABEL = 120  # pixels for the row's name
HEADING = 26  # pixels for the title or the legend
MARK = 18  # pixels of the corner with the tick or the cross
DASH = 12  # pixels from one dash of a wrong candidate's frame to the next
SUFFIXES = (".png", ".jpg", ".jpeg")
FIGURE_SUFFIXES = (*SUFFIXES, ".pdf", ".svg")
RIGHT, WRONG, NEUTRAL, PROBE = "#2e9e44", "#d0342c", "#9aa0a6", "#2b6cb0"

#: Tried in this order where Pillow's own font, which has little beyond ASCII, lacks a letter of a name.
FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def ranked_lists(
    results: Sequence[Identification], truths: Sequence[str | None], title: str | None = None
) -> Image.Image:
    """Draws for each probe two rows, as in CarGait's Figure 1: the shortlist's order above, the final order below.

    Right candidates have a solid green frame and a tick, wrong ones a dashed red frame and a cross. Where the list is
    shorter than the one that was re-ranked, the upper row shows the same candidates, with their places there. Without
    re-ranker there is one row.

    Args:
        results: the answers, one block of rows each.
        truths: for each the probe's identity, or None: frames are then grey.
        title: what was identified among how many, for example.

    Raises:
        InputError: no results, or not as many truths.
    """
    if not results or len(results) != len(truths):
        raise InputError(
            "every result needs its truth, or None",
            where="ranked_lists",
            got=f"{len(results)} results, {len(truths)} truths",
            expected="as many of both, at least one",
        )
    row, space = OUTER + TEXT + GAP, 2 * GAP
    heights = [row * (1 if result.reranker == "none" else 2) + space for result in results]
    width = LABEL + (max(len(result.candidates) for result in results) + 1) * (OUTER + GAP) + 3 * GAP
    head = HEADING if title else 0
    picture = Image.new("RGB", (width, head + sum(heights) + GAP + HEADING), "white")
    draw = ImageDraw.Draw(picture)
    if title:
        _text(draw, GAP, GAP, title, "black", 16, width - 2 * GAP)
    top = head + GAP
    for block, (result, truth) in enumerate(zip(results, truths, strict=True)):
        if block:
            draw.line((GAP, top - GAP, width - GAP, top - GAP), fill="#dddddd")
        _draw_block(picture, draw, top, result, truth)
        top += heights[block]
    _draw_legend(draw, top - GAP, any(truth is not None for truth in truths))
    return picture


def check_picture_path(path: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES) -> Path:
    """The path, or an OptionError where its suffix is no picture's or its folder is missing."""
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        got = target.suffix or "no suffix"
        raise OptionError("not a picture's name", where=str(target), got=got, expected=", ".join(suffixes))
    if not target.parent.is_dir():
        raise OptionError("there is no such folder", where=str(target.parent), fix="make it first")
    return target


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Writes a picture and gives the path; OptionError for an unusable name, InputError where the disk refuses."""
    target = check_picture_path(path)
    try:
        picture.save(target)
    except OSError as error:
        raise InputError("the picture cannot be written", where=str(target), got=str(error)) from error
    return target


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of matplotlib, in inches, tied to no window and no global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "this picture needs matplotlib, which is not installed", fix="pip install 'gaitsdk[plots]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure (.png, .jpg, .pdf, .svg) and gives the path; errors as for `save_picture`."""
    target = check_picture_path(path, FIGURE_SUFFIXES)
    try:
        figure.savefig(target, dpi=130)
    except OSError as error:
        raise InputError("the picture cannot be written", where=str(target), got=str(error)) from error
    return target


def _draw_block(
    picture: Image.Image, draw: ImageDraw.ImageDraw, top: int, result: Identification, truth: str | None
) -> None:
    """The rows of one probe; its own frame stands left of the first."""
    tiles = dict(zip((each.entry_id for each in result.candidates), result.thumbnails(), strict=True))
    initial = sorted(result.candidates, key=lambda each: each.shortlist_rank)
    rows: list[tuple[str, Sequence[Candidate]]] = [("initial", initial)]
    if result.reranker != "none":
        rows.append((result.reranker, result.candidates))
    _tile(picture, draw, (LABEL, top), result.probe, PROBE, "probe", truth or "")
    for line, (name, candidates) in enumerate(rows):
        y = top + line * (OUTER + TEXT + GAP)
        _text(draw, GAP, y + TILE // 2 - 8, name, "black", 14, LABEL - 2 * GAP)
        if line == len(rows) - 1:
            _text(draw, GAP, y + TILE // 2 + 12, result.decision, "#555555", 12, LABEL - 2 * GAP)
        for column, candidate in enumerate(candidates):
            x = LABEL + (column + 1) * (OUTER + GAP) + GAP
            if line:
                below = f"{candidate.distance:.3f}  was #{candidate.shortlist_rank}"
            else:
                below = f"#{candidate.shortlist_rank}  {candidate.shortlist_distance:.3f}"
            right = None if truth is None else candidate.identity == truth
            colour = NEUTRAL if right is None else RIGHT if right else WRONG
            _tile(picture, draw, (x, y), tiles[candidate.entry_id], colour, candidate.identity, below, right)


def _tile(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    silhouette: NDArray[np.uint8] | None,
    colour: str,
    title: str,
    subtitle: str,
    right: bool | None = None,
) -> None:
    x, y = corner
    draw.rectangle((x, y, x + OUTER - 1, y + OUTER - 1), fill=colour)
    if right is False:
        _cut_dashes(draw, x, y)
    inner = (x + FRAME, y + FRAME)
    if silhouette is None:
        draw.rectangle((*inner, inner[0] + TILE - 1, inner[1] + TILE - 1), fill="#333333")
    else:
        picture.paste(Image.fromarray(silhouette).resize((TILE, TILE)), inner)
    if right is not None:
        _draw_mark(draw, x + OUTER - FRAME - MARK, y + FRAME, colour, right)
    _text(draw, x, y + OUTER + 1, title, "black", 12, OUTER)
    _text(draw, x, y + OUTER + 15, subtitle, "#555555", 12, OUTER)


def _cut_dashes(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """White gaps in a frame: who cannot tell red from green still sees which candidates are wrong."""
    far_x, far_y = x + OUTER - 1, y + OUTER - 1
    for start in range(DASH // 2, OUTER - DASH // 2, DASH):
        end = start + DASH // 2 - 1
        for left, upper, right, lower in (
            (x + start, y, x + end, y + FRAME - 1),
            (x + start, far_y - FRAME + 1, x + end, far_y),
            (x, y + start, x + FRAME - 1, y + end),
            (far_x - FRAME + 1, y + start, far_x, y + end),
        ):
            draw.rectangle((left, upper, right, lower), fill="white")


def _draw_mark(draw: ImageDraw.ImageDraw, x: int, y: int, colour: str, right: bool) -> None:
    """A white tick or cross on the colour."""
    draw.rectangle((x, y, x + MARK - 1, y + MARK - 1), fill=colour)
    if right:
        draw.line((x + 3, y + 9, x + 7, y + 13, x + 14, y + 4), fill="white", width=3)
    else:
        draw.line((x + 4, y + 4, x + 13, y + 13), fill="white", width=3)
        draw.line((x + 4, y + 13, x + 13, y + 4), fill="white", width=3)


def _draw_legend(draw: ImageDraw.ImageDraw, y: int, marked: bool) -> None:
    x = GAP
    for colour, right, text in ((RIGHT, True, "same person"), (WRONG, False, "somebody else")) if marked else ():
        _draw_mark(draw, x, y, colour, right)
        _text(draw, x + MARK + 6, y + 2, text, "black", 12, 200)
        x += MARK + 6 + 110
    _text(draw, x, y + 2, "numbers: the distance of that row; #: place in the initial list", "#555555", 12, 500)


def _text(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: str, size: int, width: int) -> None:
    """One line, cut to `width` pixels."""
    font = _font(size, text)
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        shown = shown[:-2].rstrip("…") + "…"
    draw.text((x, y), shown, fill=colour, font=font)


def _font(size: int, text: str) -> Font:
    """Pillow's own font, or the first that has all the letters."""
    own = ImageFont.load_default(size)
    if text.isascii():
        return own
    fonts: list[Font] = [own, *(font for name in FALLBACK_FONTS if (font := _open_font(name, size)) is not None)]
    return min(fonts, key=lambda font: _missing(font, text))


@functools.lru_cache(maxsize=64)
def _open_font(name: str, size: int) -> Font | None:
    """A font of the system, or the one that matplotlib brings along."""
    places = [name]
    if (found := importlib.util.find_spec("matplotlib")) is not None and found.origin is not None:
        places.append(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name))
    for place in places:
        try:
            return ImageFont.truetype(place, size)
        except OSError:
            continue
    return None


def _missing(font: Font, text: str) -> int:
    """How many letters the font draws as the box of an unknown one."""
    box = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(letter)) == box for letter in set(text) if not letter.isspace())
