"""Shifted-window attention over time, height and width, as in Video Swin (Liu et al., 2022), for any mix of lengths.

A frame is a grid of tokens. Windows of 3 frames and 3 x 5 tokens attend within themselves; in every second block they
are shifted by (1, 1, 2), and what a shift carries around an end of an axis must not see what it did not carry around.
All of this is written as arithmetic on frame numbers, without choices by size: a graph exported from it serves every
length, and sequences of any lengths lie on one time axis, each in a slot of whole windows that shifts within itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaitsdk.models.blocks import is_exporting
from gaitsdk.models.packing import Packing

#: Frames, rows and columns of a window, and how far every second block shifts it.
WINDOW = (3, 3, 5)
SHIFT = (1, 1, 2)
TOKENS = WINDOW[0] * WINDOW[1] * WINDOW[2]
#: Entries of a table of relative positions: -2..2 frames, -2..2 rows, -4..4 columns.
POSITIONS = 5 * 5 * 9
# Added to the score of two tokens that must not see each other; the published networks were trained with the first.
_APART = -100.0
_AWAY = -10000.0


@dataclass(frozen=True)
class Slots:
    """Sequences on the time axis of the windows: each begins a slot of 3 * ceil(T / 3) frames, the rest padding.

    Attributes:
        source: [S] int64, the frame of the given time axis of length T' that each of the S slot frames shows; padding
            shows any.
        back: [T'] int64, the slot frame of each given frame.
        number, length, begin: [S] int64, each slot frame's number in its sequence (`length` and more = padding), the
            frames of that sequence, and the slot's first frame.
    """

    source: Tensor
    back: Tensor
    number: Tensor
    length: Tensor
    begin: Tensor

    @classmethod
    def of(cls, frames: int, packing: Packing | None, device: torch.device) -> Slots:
        """The slots of a time axis of `frames` frames: those of a packing, or one that all rows of a batch share."""
        if packing is None:
            number = torch.arange((frames + 2) // 3 * 3, device=device)
            length = number * 0 + frames  # `frames` may be a traced size, which torch.full would make a constant
            source = torch.minimum(number, length - 1)
            return cls(source, torch.arange(frames, device=device), number, length, number * 0)
        back = torch.zeros(packing.total, dtype=torch.int64)
        columns: list[Tensor] = []  # source, number, length and begin of each slot
        used = 0
        for start, count in zip(packing.starts, packing.lengths, strict=True):
            slot = torch.arange(-(-count // 3) * 3)
            back[start : start + count] = used + slot[:count]
            shown = start + slot.clamp(max=count - 1)
            columns.append(torch.stack([shown, slot, torch.full_like(slot, count), torch.full_like(slot, used)]))
            used += len(slot)
        source, number, length, begin = torch.cat(columns, dim=1).to(device)
        return cls(source, back.to(device), number, length, begin)

    @property
    def filled(self) -> Tensor:
        """[S] bool: frames that are no padding."""
        return self.number < self.length

    @property
    def away(self) -> Tensor:
        """[S] bool: padding of sequences shorter than a window, whose windows are cut to their length instead."""
        return (self.length < WINDOW[0]) & (self.number >= self.length)

    def shifted(self, by: int) -> Axis:
        """The time axis shifted: each slot within itself, and sequences of at most one window not at all."""
        frames = (self.length + 2) // 3 * 3
        by_each = torch.where(self.length > WINDOW[0], by, 0)
        shows = self.begin + (self.number + by_each) % frames
        place = self.begin + (self.number + frames - by_each) % frames
        return Axis(shows, place, self.number >= frames - by_each)


class Axis(NamedTuple):
    """A shifted axis: which cell each place shows, the place of each cell, which places show a cell carried around."""

    shows: Tensor
    place: Tensor
    carried: Tensor

    @classmethod
    def of(cls, size: int, by: int, device: torch.device) -> Axis:
        cell = torch.arange(size, device=device)
        return cls((cell + by) % size, (cell + size - by) % size, cell >= size - by)


class TokenGrid:
    """Tokens of all slots, and their order window by window.

    Args:
        slots: the sequences on the time axis.
        rows, columns: tokens of a frame, multiples of 3 and 5.
        dtype: of the masks.
        masked: False where the caller knows that no sequence is shorter than a window, which spares a mask.

    Attributes:
        order: [L] int64, L = S * rows * columns: for each token window by window its number frame by frame.
        place: [L] int64, the way back.
        shift, unshift: [L] int64, from the order window by window to that of shifted windows, and back.
        filled: [L, 1], window by window: 0 for padding, else 1.
        plain_mask, shifted_mask: [windows, 1 or 45, 45], added to the scores in windows; None = nothing to add.
    """

    def __init__(self, slots: Slots, rows: int, columns: int, dtype: torch.dtype, *, masked: bool) -> None:
        device = slots.number.device
        plain, shifted = (
            (slots.shifted(time), Axis.of(rows, row, device), Axis.of(columns, column, device))
            for time, row, column in ((0, 0, 0), SHIFT)
        )
        self.order, self.place = _order(*plain), _place(*plain)
        self.shift = self.place.index_select(0, _order(*shifted))
        self.unshift = _place(*shifted).index_select(0, self.order)

        frame = torch.zeros((rows, columns), dtype=dtype, device=device)
        self.filled = _window_by_window(slots.filled.to(dtype), frame[:, 0], frame[0]).unsqueeze(1)
        away = _window_by_window(slots.away.to(dtype) * _AWAY, frame[:, 0], frame[0]).reshape(-1, 1, TOKENS)
        time, row, column = (axis.carried for axis in shifted)
        carried = _window_by_window(time * 4, row * 2, column * 1).reshape(-1, 1, TOKENS)  # which axes did, as a number
        apart = (carried != carried.transpose(1, 2)).to(dtype) * _APART
        self.plain_mask = away if masked else None
        self.shifted_mask = apart + away if masked else apart


def _window_by_window(time: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sums of one number per frame, one per row and one per column: for all tokens, [windows * 45]."""
    t, h, w = WINDOW
    return (time.reshape(-1, 1, 1, t, 1, 1) + row.reshape(-1, 1, 1, h, 1) + column.reshape(-1, 1, 1, w)).flatten()


def _order(time: Axis, row: Axis, column: Axis) -> Tensor:
    """Numbers of the tokens frame by frame, for each place window by window."""
    columns = len(column.shows)
    return _window_by_window(time.shows * (len(row.shows) * columns), row.shows * columns, column.shows)


def _place(time: Axis, row: Axis, column: Axis) -> Tensor:
    """Places window by window, for each token frame by frame."""
    t, h, w = WINDOW
    across = len(column.place) // w
    down = len(row.place) // h * across
    frame = time.place // t * (down * TOKENS) + time.place % t * (h * w)
    line = row.place // h * (across * TOKENS) + row.place % h * w
    return (frame.reshape(-1, 1, 1) + line.reshape(-1, 1) + column.place // w * TOKENS + column.place % w).flatten()


class TokenLinear(nn.Linear):
    """`nn.Linear`; in inference on a CPU as a 1x1 convolution, which torch gives to oneDNN.

    Its matrix products there are MKL's, which on some processors reach 65 to 90 % of oneDNN's speed.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., c_in] -> [..., c_out]."""
        if torch.is_grad_enabled() or is_exporting() or input.device.type != "cpu":
            return super().forward(input)
        tokens = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # channels last in memory
        y = F.conv2d(tokens, self.weight[:, :, None, None], self.bias)
        return y.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias per relative position and head.

    State: `relative_position_bias_table` [225, heads], `qkv`, `proj`.
    """

    relative_position_index: Tensor

    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty(POSITIONS, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        _, h, w = WINDOW
        token = torch.arange(TOKENS)
        key = token // (h * w) * 45 + token // w % h * 9 + token % w
        # The offset makes the smallest difference, -2 frames, -2 rows and -4 columns, number 0.
        index = key.unsqueeze(1) - key + (2 * 45 + 2 * 9 + 4)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = TokenLinear(dims, 3 * dims)
        self.proj = TokenLinear(dims, dims)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, windows * 45, dims], window by window -> the same shape."""
        batch, _, dims = x.shape
        heads = self.qkv(x).reshape(batch, -1, TOKENS, 3, self.heads, dims // self.heads)
        query, key, value = heads.flatten(0, 1).permute(2, 0, 3, 1, 4)  # each [B * windows, heads, 45, d]
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
        y: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
        # A copy even where none seems needed: the exporter puts another attention there, of another memory layout.
        y = self.proj(y.clone(memory_format=torch.contiguous_format).reshape(batch, -1, dims))
        return y


class Mlp(nn.Module):
    """Linear, exact GELU, linear; four times as wide inside. State: `fc1 fc2`."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(dims, 4 * dims)
        self.fc2 = TokenLinear(4 * dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dims] -> [..., dims]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class WindowBlock(nn.Module):
    """Attention within windows, then an MLP, each after a layer norm and added to what came in.

    State: `norm1 attn norm2 mlp`.

    Args:
        dims, heads: width of a token, and attention heads in it.
        shifted: whether the block shifts its windows.
        drop_path: in training, the probability that a sequence skips a branch (stochastic depth).
    """

    def __init__(self, dims: int, heads: int, *, shifted: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.shifted, self.drop_path = shifted, drop_path
        self.norm1 = nn.LayerNorm(dims)
        self.attn = WindowAttention(dims, heads)
        self.norm2 = nn.LayerNorm(dims)
        self.mlp = Mlp(dims)

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """x [B, L, dims], the grid's tokens window by window -> the same shape."""
        # Padding enters the attention as zeros and is seen there: the published networks do so.
        y = self.norm1(x) * grid.filled
        if self.shifted:
            y = self.attn(y.index_select(1, grid.shift), grid.shifted_mask).index_select(1, grid.unshift)
        else:
            y = self.attn(y, grid.plain_mask)
        x = x + self._dropped(y)
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty((branch.shape[0], 1, 1)).bernoulli_(keep) / keep
