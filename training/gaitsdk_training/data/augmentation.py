"""Augmentations of silhouette batches, for robustness against imperfect masks and cameras. All off by default.

Each is drawn once per sequence and applied to all its frames, so the gait itself is untouched; `drop_frames` alone is
about time. Where several maps make up a frame, all of them are moved, cleared and dropped alike. Random numbers are
drawn on the CPU, so a seed gives the same batch on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

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
        erode, dilate: 3x3 minimum or maximum, as from a mask that is too thin or too fat; of several maps, the
            silhouette's alone, for the others come from no mask.
        erase: clear a rectangle of up to `erase_area` of the frame (something carried in front, a hole in the mask).
        drop_rows: clear a band of up to `rows` of the height (an occluder).
        rotate: rotate by up to `degrees`, and nothing else (published recipes: 10 degrees).
        perspective: move each corner of the frame by up to `tilt` of the half side, along both axes (a camera that
            looks up or down).
        drop_frames: lose each frame with a probability of up to `frames`; the frame before it stands still instead, as
            in a video with gaps (where the first is lost, the first that is left).
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
    rotate: float = 0.0
    perspective: float = 0.0
    tilt: float = 0.15
    drop_frames: float = 0.0
    frames: float = 0.3

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
        batch: [B, T, H, W] floating in 0..1, or [B, T, C, H, W] of C > 1 maps, the silhouette last.
        options: what to do, and how often.
        generator: on the CPU.

    Returns:
        As the batch: same shape, dtype and device, in 0..1.
    """
    count = batch.shape[0]

    def chosen(probability: float) -> Tensor:
        """Positions of the sequences that are hit. Drawn even where probability is 0: steps stay comparable."""
        return (torch.rand(count, generator=generator) < probability).nonzero()[:, 0]

    # The maps of all frames of a sequence as one image of as many channels: one geometry for all of them.
    maps = 1 if batch.dim() == 4 else batch.shape[2]
    result = batch.flatten(1, -3).clone() if maps > 1 else batch.clone()

    def silhouette(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The change, of every frame's last map."""

        def changed(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, maps - 1 :: maps] = change(x[:, maps - 1 :: maps])
            return x

        return changed

    steps: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [
        (chosen(options.flip), lambda x: x.flip(-1)),
        (chosen(options.affine), lambda x: _affine(x, options, generator)),
        (chosen(options.erode), silhouette(lambda x: -_max3(-x))),
        (chosen(options.dilate), silhouette(_max3)),
        (chosen(options.erase), lambda x: _clear(x, _rectangles(len(x), options.erase_area, generator))),
        (chosen(options.drop_rows), lambda x: _clear(x, _bands(len(x), options.rows, generator))),
    ]
    # Younger than the recipes of published bundles: drawn only where asked for, so that those give the same batches.
    younger: tuple[tuple[float, Callable[[Tensor], Tensor]], ...] = (
        (options.rotate, lambda x: _affine(x, replace(options, shear=0.0, scale=0.0), generator)),
        (options.perspective, lambda x: _perspective(x, options.tilt, generator)),
        (options.drop_frames, lambda x: _drop_frames(x, maps, options.frames, generator)),
    )
    steps += [(chosen(probability), change) for probability, change in younger if probability]
    for rows, change in steps:
        if len(rows):
            rows = rows.to(batch.device)
            result[rows] = change(result[rows])
    return result.view_as(batch)


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


def _perspective(x: Tensor, tilt: float, generator: torch.Generator) -> Tensor:
    """One map of the projective plane per sequence: the corners of the frame are read where they have moved to."""
    count, _, height, width = x.shape
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    moved = corners + tilt * (2.0 * torch.rand(count, 4, 2, generator=generator, dtype=torch.float64) - 1.0)
    # For every corner (x, y) -> (u, v): u (g x + h y + 1) = a x + b y + c, and v (g x + h y + 1) = d x + e y + f.
    point = torch.cat([corners, torch.ones(4, 1, dtype=torch.float64)], dim=1).expand(count, 4, 3)
    zero = torch.zeros_like(point)
    rows_u = torch.cat([point, zero, -moved[..., :1] * corners], dim=-1)
    rows_v = torch.cat([zero, point, -moved[..., 1:] * corners], dim=-1)
    right = torch.cat([moved[..., 0], moved[..., 1]], dim=1)
    solved = torch.linalg.solve(torch.cat([rows_u, rows_v], dim=1), right)
    homography = torch.cat([solved, torch.ones(count, 1, dtype=torch.float64)], dim=1).view(count, 3, 3)
    identity = torch.eye(2, 3, dtype=torch.float64)[None]
    plane = F.affine_grid(identity, [1, 1, height, width], align_corners=False).view(-1, 2)
    plane = torch.cat([plane, torch.ones(len(plane), 1, dtype=torch.float64)], dim=1)
    projected = plane @ homography.transpose(1, 2)
    grid = (projected[..., :2] / projected[..., 2:]).view(count, height, width, 2).to(x.device, x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0.0, 1.0)


def _drop_frames(x: Tensor, maps: int, share: float, generator: torch.Generator) -> Tensor:
    """Whole frames, of as many maps: [B, T * maps, H, W]."""
    count, length = x.shape[0], x.shape[1] // maps
    kept = torch.rand(count, length, generator=generator) >= share * torch.rand(count, 1, generator=generator)
    kept[:, 0] |= ~kept.any(dim=1)  # something has to be left
    first = kept.to(torch.uint8).argmax(dim=1, keepdim=True)
    standing = torch.where(kept, torch.arange(length), torch.full((), -1)).cummax(dim=1).values
    source = torch.maximum(standing, first).to(x.device)
    frames = x.view(count, length, maps, *x.shape[2:])
    return frames[torch.arange(count, device=x.device)[:, None], source].view_as(x)


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
