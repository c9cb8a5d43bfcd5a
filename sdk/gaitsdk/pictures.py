"""Pictures of ranked lists, drawn with Pillow: before and after re-ranking, one silhouette per candidate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gaitsdk.errors import InputError, OptionError

if TYPE_CHECKING:
    from gaitsdk.results import Candidate, Identification

TILE = 96  # pixels of a silhouette
FRAME = 5  # pixels of the coloured rectangle
GAP = 10
TEXT = 30  # pixels for two lines below a silhouette
LABEL = 104  # pixels for the row's name
SUFFIXES = (".png", ".jpg", ".jpeg")
RIGHT, WRONG, NEUTRAL, PROBE = "#2e9e44", "#d0342c", "#9aa0a6", "#2b6cb0"


def ranked_lists(results: Sequence[Identification], truths: Sequence[str | None]) -> Image.Image:
    """Draws for each probe two rows: the shortlist's order and the final order.

    Args:
        results: the answers, one block of two rows each.
        truths: for each the probe's identity, or None: frames are then grey instead of green (right) and red (wrong).
    """
    columns = max(len(result.candidates) for result in results)
    row = TILE + 2 * FRAME + TEXT + GAP
    width = LABEL + (columns + 1) * (TILE + 2 * FRAME + GAP) + 3 * GAP
    picture = Image.new("RGB", (width, len(results) * (2 * row + 2 * GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for block, (result, truth) in enumerate(zip(results, truths, strict=True)):
        top = GAP + block * (2 * row + 2 * GAP)
        if block:
            draw.line((GAP, top - GAP, width - GAP, top - GAP), fill="#dddddd")
        tiles = dict(zip((each.entry_id for each in result.candidates), result.thumbnails(), strict=True))
        initial = sorted(result.candidates, key=lambda each: each.shortlist_rank)
        rows: list[tuple[str, Sequence[Candidate]]] = [("initial", initial), (result.reranker, result.candidates)]
        for line, (name, candidates) in enumerate(rows):
            y = top + line * row
            _row_name(draw, y, name, result if line else None)
            if line == 0:
                _tile(picture, draw, LABEL, y, result.probe, PROBE, "probe", truth or "")
            for column, candidate in enumerate(candidates):
                x = LABEL + (column + 1) * (TILE + 2 * FRAME + GAP) + GAP
                colour = NEUTRAL if truth is None else RIGHT if candidate.identity == truth else WRONG
                distance = candidate.distance if line else candidate.shortlist_distance
                _tile(picture, draw, x, y, tiles[candidate.entry_id], colour, candidate.identity, f"{distance:.3f}")
    return picture


def check_picture_path(path: str | os.PathLike[str]) -> Path:
    """The path, or an OptionError where its suffix is no picture's or its folder is missing."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        got = target.suffix or "no suffix"
        raise OptionError("not a picture's name", where=str(target), got=got, expected=", ".join(SUFFIXES))
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


def _row_name(draw: ImageDraw.ImageDraw, y: int, name: str, result: Identification | None) -> None:
    draw.text((GAP, y + TILE // 2 - 8), name, fill="black", font=_font(16))
    if result is not None:
        draw.text((GAP, y + TILE // 2 + 14), result.decision, fill="#555555", font=_font(12))


def _tile(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    silhouette: NDArray[np.uint8] | None,
    colour: str,
    title: str,
    subtitle: str,
) -> None:
    outer = TILE + 2 * FRAME
    draw.rectangle((x, y, x + outer - 1, y + outer - 1), fill=colour)
    if silhouette is None:
        draw.rectangle((x + FRAME, y + FRAME, x + FRAME + TILE - 1, y + FRAME + TILE - 1), fill="#333333")
    else:
        picture.paste(Image.fromarray(silhouette).resize((TILE, TILE)), (x + FRAME, y + FRAME))
    for line, text in enumerate((title, subtitle)):
        shown = text if len(text) <= 15 else f"{text[:14]}…"
        draw.text((x, y + outer + 1 + 14 * line), shown, fill="black" if line == 0 else "#555555", font=_font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
