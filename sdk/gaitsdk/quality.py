"""What became of every frame of a sequence: the report that `normalise` and `prepare` give beside the silhouettes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Why a frame was dropped.
EMPTY = "empty"
TOO_SMALL = "too small"
NO_CENTRE = "no horizontal centre"
MIXED_RANGE = "0/1 values in a sequence of 0..255"

#: More connected pieces than this, on average, in both the rows and the columns of a sequence are noise.
MOST_PIECES = 6.0
#: So is a foreground of which fewer pixels than this share have two neighbours.
LEAST_JOINED = 0.33


@dataclass(frozen=True)
class FrameQuality:
    """One frame as it came in.

    Attributes:
        index: its place in the sequence, from 0.
        source: its file's name, or None where it came as an array.
        kept: whether it is among the silhouettes.
        reason: None where kept, else EMPTY, TOO_SMALL, NO_CENTRE or MIXED_RANGE.
        detail: figures for the reason, such as "25 foreground pixels < 40"; may be empty.
        area: foreground in white pixels: the sum of its 0..255 values over 255, rounded down.
        bbox: (top, left, bottom, right) in pixels around everything that is not zero, the last two exclusive; None
            where nothing is.
    """

    index: int
    source: str | None
    kept: bool
    reason: str | None
    detail: str
    area: int
    bbox: tuple[int, int, int, int] | None

    @property
    def explanation(self) -> str:
        """Reason and detail in one: "too small: 25 foreground pixels < 40"; empty where kept."""
        return ": ".join(part for part in (self.reason, self.detail) if part)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; `reason` is the explanation."""
        return {
            "index": self.index,
            "source": self.source,
            "kept": self.kept,
            "reason": self.explanation or None,
            "area": self.area,
            "bbox": None if self.bbox is None else list(self.bbox),
        }


@dataclass(frozen=True)
class QualityReport:
    """All frames of one sequence.

    Attributes:
        frames: one FrameQuality per frame that came in, in order.
        size: S of the silhouettes.
        already_normalised: the silhouettes were taken as they came.
        notes: what was done to the whole sequence, such as scaling 0/1 masks.
    """

    frames: tuple[FrameQuality, ...]
    size: int
    already_normalised: bool
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Frames that came in."""
        return len(self.frames)

    @property
    def kept(self) -> int:
        """Frames among the silhouettes."""
        return sum(frame.kept for frame in self.frames)

    @property
    def dropped(self) -> int:
        """Frames left out."""
        return self.total - self.kept

    @property
    def reasons(self) -> dict[str, int]:
        """How many frames were dropped for each reason, the most frequent first."""
        return dict(Counter(frame.reason for frame in self.frames if frame.reason is not None).most_common())

    def summary(self) -> str:
        """One line: "28 of 30 frames kept (2 dropped: 2 empty); 0/1 masks scaled to 0/255"."""
        text = f"{self.kept} of {self.total} frames kept"
        if self.dropped:
            listed = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
            text += f" ({self.dropped} dropped: {listed})"
        return "; ".join((text, *self.notes))

    def to_dict(self, *, per_frame: bool = False) -> dict[str, Any]:
        """As plain data for JSON: totals, notes and the dropped frames; with `per_frame` all frames too."""
        data: dict[str, Any] = {
            "total": self.total,
            "kept": self.kept,
            "dropped": self.dropped,
            "reasons": self.reasons,
            "size": self.size,
            "already_normalised": self.already_normalised,
            "notes": list(self.notes),
            "dropped_frames": [frame.to_dict() for frame in self.frames if not frame.kept],
            "summary": self.summary(),
        }
        if per_frame:
            data["frames"] = [frame.to_dict() for frame in self.frames]
        return data


def noise_found(silhouettes: NDArray[np.uint8]) -> str | None:
    """What makes normalised silhouettes noise instead of a person, or None.

    Two figures of the whole sequence, of everything brighter than half of its maximum: `MOST_PIECES`, which noise of
    about 15 to 85 % density exceeds, and `LEAST_JOINED`, which sparser noise does not reach. The limits are far from
    people: 814 sequences of real motion have at most 1.6 pieces and at least 0.99 joined, synthetic walkers at the
    largest noise 1.6 and 0.99, deliberately ragged masks 3.1 and 0.85, real video by background subtraction without any
    cleaning up to 5 pieces, mere outlines of people 0.38 joined. All of these pass, and so do sequences of which only
    some frames are noise, and noise whose grains are several pixels wide after scaling: that could be anything.

    Args:
        silhouettes: uint8 `[T, S, S]`.
    """
    if not silhouettes.any():
        return None
    mask = silhouettes > silhouettes.max() // 2
    count = int(mask.sum())
    begins_row, begins_column = mask.copy(), mask.copy()
    begins_row[:, :, 1:] &= ~mask[:, :, :-1]
    begins_column[:, 1:] &= ~mask[:, :-1]
    rows, columns = (int(mask.any(axis=axis).sum()) for axis in (2, 1))
    pieces = min(int(begins_row.sum()) / max(rows, 1), int(begins_column.sum()) / max(columns, 1))
    if pieces > MOST_PIECES:
        return f"{pieces:.1f} separate pieces of foreground per row and column"
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    across = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
    around = across[:, :-2] + across[:, 1:-1] + across[:, 2:]  # the pixel itself among them
    joined = int((mask & (around >= 3)).sum()) / max(count, 1)
    return f"single pixels: {joined:.0%} of the foreground has two neighbours" if joined < LEAST_JOINED else None
