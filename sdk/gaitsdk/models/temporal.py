"""Backbones that look across time before the maximum over the frames."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from gaitsdk.models.base import GaitModel
from gaitsdk.models.blocks import maximum_over
from gaitsdk.models.packing import Packing, Piece, cut, rows

#: A piece of a long sequence is at least so many halos long, so that what overlaps costs little.
_HALOS = 24
#: and at least so many frames, below which cutting has no use.
_SHORTEST_PIECE = 240
#: Parameters of a network whose layers cost more to call than to compute on a CPU, for a few frames.
_SMALL = 1_000_000


class TemporalModel(GaitModel):
    """A backbone whose layers look across time, followed by a maximum over the frames.

    A subclass implements `temporal_maps` and `set_features`, and says how far its layers look:

    Attributes:
        halo: a map depends on no frame further away than this, on either side; 0 = on its own frame only.
        stride: of the network in time: frames of the input for each of its maps.
        step: pieces of a long sequence start at multiples of it: the stride, or the size of windows in time.
        gap: blank frames between two sequences on one time axis: the largest radius of a single layer.
    """

    halo: int = 0
    stride: ClassVar[int] = 1
    step: ClassVar[int] = 1
    gap: ClassVar[int] = 1

    @property
    def length_handling(self) -> str:  # type: ignore[override]
        """ "cyclic" where no layer looks across time, else "alone"."""
        return "cyclic" if self.halo == 0 and self.step == 1 else "alone"

    @abc.abstractmethod
    def temporal_maps(self, x: Tensor, packing: Packing | None) -> Tensor:
        """Maps of all frames.

        Args:
            x: [B, C, T, H, W]; with a packing B is 1 and T its total.
            packing: where the sequences lie on the time axis, None = each fills its row. Whatever looks across time
                goes through `blanked` first.

        Returns:
            [B, c, T // stride, ...].
        """

    @abc.abstractmethod
    def set_features(self, pooled: Tensor) -> Tensor:
        """The maps' maximum over the frames [B, c, ...] -> feature map before any BN neck [B, s, d]."""

    def lengthen(self, x: Tensor) -> Tensor:
        """Repeats the frames of a sequence that is too short for the network; x [B, T, ...]."""
        return x

    def extract(self, x: Tensor) -> Tensor:
        """x [B, T, (C,) H, W] -> [B, s, d]."""
        maps = self.temporal_maps(self._channels_first(self.lengthen(x)), None)
        return self.set_features(maximum_over(maps, dim=2))

    def _channels_first(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if self.input_channels == 1 else x.transpose(1, 2)

    def _chunk_frames(self) -> int:
        """On a CPU only sequences in small networks gain by sharing a time axis (figures: docs/models.md)."""
        room = super()._chunk_frames()
        small = sum(each.numel() for each in self.parameters()) < _SMALL
        return max(room, 96) if small and self.chunk_frames is None else room

    def _extract_sequences(self, sequences: list[Tensor]) -> Tensor:
        """Short sequences share a time axis, long ones are cut into pieces; maxima join what belongs together."""
        sequences = [self.lengthen(sequence[None])[0] for sequence in sequences]
        room = self._chunk_frames()
        longest = room if self.halo == 0 else max(room, _SHORTEST_PIECE, _HALOS * self.halo)
        maxima: dict[int, Tensor] = {}
        pieces = cut([s.shape[0] for s in sequences], longest, self.halo, self.step)
        # The shortest share an axis, where calling the layers costs most; long ones gain nothing by company.
        for row in rows(sorted(pieces, key=lambda piece: piece.length), room):
            for piece, maximum in zip(row, self._maxima(row, sequences), strict=True):
                known = maxima.get(piece.sequence)
                maxima[piece.sequence] = maximum if known is None else torch.maximum(known, maximum)
        return self.set_features(torch.stack([maxima[index] for index in range(len(sequences))]))

    def _maxima(self, row: list[Piece], sequences: list[Tensor]) -> list[Tensor]:
        """The maximum over the frames that count, [c, ...] for each piece."""
        frames = [sequences[piece.sequence][piece.start : piece.stop] for piece in row]
        if len(row) == 1:
            maps = list(self.temporal_maps(self._channels_first(frames[0][None]), None))
        else:
            packing = Packing.of([p.length for p in row], stride=self.stride, gap=self.gap, device=frames[0].device)
            whole = self.temporal_maps(self._channels_first(packing.pack(frames)[None]), packing)
            maps = packing.divided(self.stride).unpack(whole)
        found = []
        for piece, each in zip(row, maps, strict=True):
            first, last = (piece.first - piece.start) // self.stride, (piece.last - piece.start) // self.stride
            found.append(maximum_over(each[:, first:last], dim=1))
        return found
