"""Sequences of unequal lengths on one time axis: temporal layers see them together, and each as if it were alone.

Two facts make this exact. A temporal convolution that is padded with zeros sees the same numbers where a sequence
ends and where blank frames follow it, if these are zero again before every layer that looks across time. And what a
frame's map depends on ends `halo` frames away, so a long sequence can be cut into pieces that overlap by that much,
of which only the maps between the overlaps count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Frames `start` to `stop` of a sequence are read, and the maps of frames `first` to `last` of it count.

    Attributes:
        sequence: index of the sequence.
        start, stop, first, last: frame numbers in the sequence, ends excluded.
    """

    sequence: int
    start: int
    stop: int
    first: int
    last: int

    @property
    def length(self) -> int:
        """Frames that are read."""
        return self.stop - self.start


def cut(lengths: Sequence[int], longest: int, halo: int, step: int) -> list[Piece]:
    """Pieces of at most about `longest` frames that cover all sequences.

    Args:
        lengths: frames of each sequence, at least 1.
        longest: a sequence of up to so many frames stays whole.
        halo: how many frames away a map may look.
        step: pieces start and count at multiples of this (a network's stride in time, or its windows).
    """
    halo = -(-halo // step) * step
    core = max(step, (longest - 2 * halo) // step * step)
    pieces = []
    for index, length in enumerate(lengths):
        if length <= longest:
            pieces.append(Piece(index, 0, length, 0, length))
            continue
        first = 0
        while first < length:
            last = first + core
            if length - last < step:  # less than one step of the network is no piece of its own
                last = length
            pieces.append(Piece(index, max(0, first - halo), min(length, last + halo), first, last))
            first = last
    return pieces


def rows(pieces: Sequence[Piece], room: int) -> Iterator[list[Piece]]:
    """Consecutive pieces that share a time axis: as many as fit into `room` frames, at least one."""
    row: list[Piece] = []
    used = 0
    for piece in pieces:
        if row and used + piece.length > room:
            yield row
            row, used = [], 0
        row.append(piece)
        used += piece.length
    if row:
        yield row


class Packing:
    """Where pieces lie on their common time axis, with blank frames between them.

    Attributes:
        lengths, starts: frames and first frame of each piece.
        total: frames of the axis.
    """

    def __init__(self, lengths: Sequence[int], starts: Sequence[int], total: int, device: torch.device) -> None:
        self.lengths, self.starts, self.total = tuple(lengths), tuple(starts), total
        blank = torch.ones(total, dtype=torch.bool)
        for start, length in zip(starts, lengths, strict=True):
            blank[start : start + length] = False
        self._blank = blank.nonzero().flatten().to(device)

    @classmethod
    def of(cls, lengths: Sequence[int], *, stride: int, gap: int, device: torch.device) -> Packing:
        """Pieces one after the other, `gap` blank frames between two of them also after division by `stride`."""
        starts = [0]
        for length in lengths[:-1]:
            starts.append(starts[-1] + stride * (length // stride + gap))
        return cls(lengths, starts, starts[-1] + lengths[-1], device)

    def pack(self, pieces: Sequence[Tensor]) -> Tensor:
        """pieces [T_i, ...] -> [total, ...], blank frames zero."""
        packed = pieces[0].new_zeros((self.total, *pieces[0].shape[1:]))
        for piece, start in zip(pieces, self.starts, strict=True):
            packed[start : start + piece.shape[0]] = piece
        return packed

    def unpack(self, x: Tensor) -> list[Tensor]:
        """x [1, c, total, ...] -> [c, T_i, ...] of every piece."""
        return [x[0, :, start : start + n] for start, n in zip(self.starts, self.lengths, strict=True)]

    def blank(self, x: Tensor, value: float) -> Tensor:
        """x [1, c, total, ...] with `value` in all blank frames; in place."""
        return x.index_fill_(2, self._blank, value)

    def divided(self, stride: int) -> Packing:
        """The packing after a layer with that stride in time, which drops what does not fill a stride."""
        starts = [start // stride for start in self.starts]
        return Packing([n // stride for n in self.lengths], starts, self.total // stride, self._blank.device)


def blanked(x: Tensor, packing: Packing | None, value: float = 0.0) -> Tensor:
    """What a layer that looks across time must be given: x [B, c, T, ...], blank frames (if any) holding `value`."""
    return x if packing is None else packing.blank(x, value)
