"""Augmentations of silhouette batches, for robustness against imperfect masks and cameras. All off by default.

Each is drawn once per sequence and applied to all its frames, so the gait itself is untouched. Random numbers are drawn
on the CPU, so a seed gives the same batch on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from gaitsdk.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Probabilities per sequence (0..1) and extents.

    Attributes:
        flip: mirror left and right (which also turns a view into its mirror view; identities are the only labels).
        affine: rotate by up to `degrees`, shear by up to `shear`, scale height and width each by up to `scale`.
        erode, dilate: 3x3 minimum or maximum, as from a mask that is too thin or too fat.
        erase: clear a rectangle of up to `erase_area` of the frame (something carried in front, a hole in the mask).
        drop_rows: clear a band of up to `rows` of the height (an occluder).
    """

    flip: float = 0.0
    affine: float = 0.0
    degrees: float = 8.0
    shear: float = 0.08
    scale: float = 0.08
    erode: float = 0.0
    dilate: float = 0.0
    erase: float = 0.0
    erase_area: float = 0.08
    drop_rows: float = 0.0
    rows: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limit = 90.0 if field.name == "degrees" else 1.0
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= limit:
                raise OptionError(
                    "impossible augmentation",
                    where=f"Augmentation.{field.name}",
                    got=repr(value),
                    expected=f"0 to {limit:g}",
                )


def augment(batch: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments a batch; the input is left as it is.

    Args:
        batch: [B, T, H, W] floating in 0..1.
        options: what to do, and how often.
        generator: on the CPU.

    Returns:
        [B, T, H, W], same dtype and device, in 0..1.
    """
    count = batch.shape[0]

    def chosen(probability: float) -> Tensor:
        """Positions of the sequences that are hit. Drawn even where probability is 0: steps stay comparable."""
        return (torch.rand(count, generator=generator) < probability).nonzero()[:, 0]

    result = batch.clone()
    for rows, change in (
        (chosen(options.flip), lambda x: x.flip(-1)),
        (chosen(options.affine), lambda x: _affine(x, options, generator)),
        (chosen(options.erode), lambda x: -_max3(-x)),
        (chosen(options.dilate), lambda x: _max3(x)),
        (chosen(options.erase), lambda x: _clear(x, _rectangles(len(x), options.erase_area, generator))),
        (chosen(options.drop_rows), lambda x: _clear(x, _bands(len(x), options.rows, generator))),
    ):
        if len(rows):
            rows = rows.to(batch.device)
            result[rows] = change(result[rows])
    return result


def _max3(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _affine(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """One affine map per sequence; its frames are the channels, so the grid is computed once for all of them."""
    count, _, height, width = x.shape
    angle, shear, sx, sy = (2.0 * torch.rand(4, count, generator=generator) - 1.0).unbind()
    angle = angle * math.radians(options.degrees)
    shear = shear * options.shear
    sx, sy = 1.0 + sx * options.scale, 1.0 + sy * options.scale
    # Coordinates run from -1 to 1 along both sides: the aspect ratio keeps a rotation from shearing the person.
    aspect = height / width
    zero = torch.zeros(count)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([cos * sx, (shear - sin) * aspect * sy, zero], dim=-1)
    row_y = torch.stack([sin / aspect * sx, cos * sy, zero], dim=-1)
    theta = torch.stack([row_x, row_y], dim=1).to(x.device, x.dtype)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0.0, 1.0)


def _rectangles(count: int, area: float, generator: torch.Generator) -> Tensor:
    """[count, 4] top, bottom, left, right in 0..1, of up to `area` and with sides 1:3 to 3:1 of the frame's."""
    size, shape, top, left = torch.rand(4, count, generator=generator).unbind()
    ratio = torch.exp((2.0 * shape - 1.0) * math.log(3.0))
    height = (size * area * ratio).sqrt().clamp(max=1.0)
    width = (size * area / ratio).sqrt().clamp(max=1.0)
    top, left = top * (1.0 - height), left * (1.0 - width)
    return torch.stack([top, top + height, left, left + width], dim=-1)


def _bands(count: int, rows: float, generator: torch.Generator) -> Tensor:
    """[count, 4] as in `_rectangles`, over the whole width."""
    size, top = torch.rand(2, count, generator=generator).unbind()
    height = size * rows
    top = top * (1.0 - height)
    return torch.stack([top, top + height, torch.zeros(count), torch.ones(count)], dim=-1)


def _clear(x: Tensor, boxes: Tensor) -> Tensor:
    """Zero inside one box per sequence, given in 0..1."""
    top, bottom, left, right = (side[:, None] for side in boxes.to(x.device).unbind(-1))
    y = (torch.arange(x.shape[-2], device=x.device) + 0.5) / x.shape[-2]
    z = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
    inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((z >= left) & (z < right))[:, None, None, :]
    return x.masked_fill(inside, 0.0)
