"""Cameras and the rasteriser: solids to outlines, outlines to masks or to normalised silhouettes.

Every solid is the hull of two ellipsoids, so its outline is a convex polygon: for each of a fan of image directions
the point of either ellipse that reaches furthest. That is exact up to the number of directions, and vectorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.synthetic.pose import LONGEST_PATH, Solids

Array = NDArray[Any]
Holes = list[list[Array]]  # per frame, polygons [J,2] in shares of the person's box
#: The eleven cameras of CASIA-B: 000 = the walker comes towards the camera, 090 = from its left, 180 = from behind.
VIEWS: tuple[str, ...] = tuple(f"{angle:03d}" for angle in range(0, 181, 18))

SIZE = 64
_DIRECTIONS = 18  # corners of an outline: a head of 8 pixels shows none of them
_OVERSAMPLE = 4
_ROWS = SIZE * _OVERSAMPLE
_COLUMNS = 96 * _OVERSAMPLE  # wider than the window: the centre is known only after drawing


@dataclass(frozen=True)
class Camera:
    """Where a camera stands: `angle` from the walking direction, heights and distance in metres, angles in radians."""

    angle: float
    height: float
    distance: float
    roll: float
    aim: float  # height of the point that it looks at


def draw_rig(rng: np.random.Generator) -> tuple[float, float, float]:
    """Height, distance and heading error of the eleven cameras around one walk (metres, metres, radians)."""
    height, distance = rng.uniform((0.8, 4.0), (2.0, 9.0))
    return float(height), float(distance), float(np.radians(np.clip(rng.normal(0, 2.5), -7, 7)))


def draw_camera(rng: np.random.Generator, rig: tuple[float, float, float], view: int) -> Camera:
    """One camera of the rig, slightly out of its nominal place; `view` is the index in VIEWS."""
    height, distance, heading = rig
    return Camera(
        angle=float(np.radians(18.0 * view) + heading + np.radians(np.clip(rng.normal(0, 1.5), -4, 4))),
        height=float(np.clip(height + rng.normal(0, 0.05), 0.7, 2.2)),
        distance=float(np.clip(distance * (1 + rng.normal(0, 0.03)), 3.8, 9.5)),
        roll=float(np.radians(rng.normal(0, 0.7))),
        aim=float(rng.uniform(0.8, 1.0)),
    )


def outlines(solids: Solids, camera: Camera) -> Array:
    """Project all solids.

    Returns:
        float32 [T,P,J,2], image coordinates (x right, y down) in focal lengths, J corners per convex outline.
    """
    centres, axes = solids.stacked()
    place = np.array([np.cos(camera.angle), np.sin(camera.angle), 0.0]) * camera.distance + [0.0, 0.0, camera.height]
    forward = np.array([0.0, 0.0, camera.aim]) - place
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(camera.roll), np.sin(camera.roll)
    basis = np.stack([cos * right + sin * down, cos * down - sin * right, forward], -1).astype(np.float32)
    seen = (centres - place.astype(np.float32)) @ basis
    scale = 1.0 / np.maximum(seen[..., 2:], 0.3)  # the path keeps the walker further away than that
    middle = seen[..., :2] * scale
    # each ellipsoid is projected at its own depth; within one of them perspective is negligible
    half = (axes @ basis[:, :2]) * scale[..., None]
    fan = np.arange(_DIRECTIONS, dtype=np.float32) * np.float32(2 * np.pi / _DIRECTIONS)
    directions = np.stack([np.cos(fan), np.sin(fan)])
    shares = half @ directions  # [T,P,2,3,J]
    reach = np.sqrt((shares * shares).sum(-2))
    first = (middle @ directions + reach).argmax(2)[:, :, None] == 0  # which end reaches further, [T,P,1,J]
    shares /= reach[:, :, :, None]
    points = np.swapaxes(shares, -1, -2) @ half + middle[:, :, :, None]  # [T,P,2,J,2]
    return np.where(first[:, :, 0, :, None], points[:, :, 0], points[:, :, 1])


def rasterise(shapes: Array, hidden: Array | None, holes: Holes) -> Array:
    """Draw straight in the geometry of normalised silhouettes.

    Args:
        shapes: float32 [T,P,J,2] from `outlines`.
        hidden: bool [T,P], outlines that the segmentation lost, or None.
        holes: per frame, polygons [J,2] in shares of the person's box (0..1) to be cut out.

    Returns:
        uint8 [T,64,64]: the person spans the 64 rows and stands with its median column in the middle.
    """
    from PIL import Image, ImageDraw

    frames = len(shapes)
    shown = np.ones(shapes.shape[:2], bool) if hidden is None else ~hidden
    ys = np.where(shown[..., None], shapes[..., 1], np.nan)
    top, bottom = np.nanmin(ys, (1, 2)), np.nanmax(ys, (1, 2))
    scale = (_ROWS - 1) / (bottom - top)
    xs = np.where(shown[..., None], shapes[..., 0], np.nan)
    left, right = np.nanmin(xs, (1, 2)), np.nanmax(xs, (1, 2))
    drawn = np.empty_like(shapes)
    drawn[..., 0] = (shapes[..., 0] - (0.5 * (left + right))[:, None, None]) * scale[:, None, None] + 0.5 * _COLUMNS
    drawn[..., 1] = (shapes[..., 1] - top[:, None, None]) * scale[:, None, None]
    polygons = np.rint(drawn).astype(np.int32).reshape(frames, shapes.shape[1], -1).tolist()
    out = np.empty((frames, SIZE, _COLUMNS // _OVERSAMPLE), np.uint8)
    for t in range(frames):
        image = Image.new("L", (_COLUMNS, _ROWS))
        pen = ImageDraw.Draw(image)
        for polygon, keep in zip(polygons[t], shown[t], strict=True):
            if keep:
                pen.polygon(polygon, fill=255)
        for hole in holes[t] if holes else ():
            box = np.array([(right[t] - left[t]) * scale[t], _ROWS])
            corner = np.array([0.5 * (_COLUMNS - box[0]), 0.0])
            pen.polygon(np.rint(hole * box + corner).astype(np.int32).ravel().tolist(), fill=0)
        out[t] = np.asarray(image.reduce(_OVERSAMPLE))
    return _centre(out)


def _centre(wide: Array) -> Array:
    """Cut the 64 columns around the column that halves the mass; uint8 [T,64,W] -> [T,64,64]."""
    frames, rows, columns = wide.shape
    mass = wide.sum(1, dtype=np.int64).cumsum(1)
    median = (mass * 2 > mass[:, -1:]).argmax(1)
    padded = np.zeros((frames, rows, columns + 2 * SIZE), np.uint8)
    padded[:, :, SIZE:-SIZE] = wide
    index = (median + SIZE - SIZE // 2)[:, None] + np.arange(SIZE)
    return np.ascontiguousarray(np.take_along_axis(padded, index[:, None, :], 2))


def draw_masks(shapes: Array, hidden: Array | None, holes: Holes, camera: Camera, size: tuple[int, int]) -> Array:
    """Draw as a camera of `size` (rows, columns) sees the walk; uint8 {0,255} [T,rows,columns].

    The lens is chosen so that a person of 1.7 m in the middle of the path is 46 % of the picture high.
    """
    from PIL import Image, ImageDraw

    rows, columns = size
    focal = 0.46 * rows * camera.distance / 1.7
    widest = 0.5 * LONGEST_PATH + 0.6
    focal = min(focal, 0.5 * columns * camera.distance / widest)
    polygons = 2 * (shapes * focal + np.array([0.5 * columns, 0.5 * rows]))
    out = np.empty((len(shapes), rows, columns), np.uint8)
    for t in range(len(shapes)):
        image = Image.new("L", (2 * columns, 2 * rows))
        pen = ImageDraw.Draw(image)
        shown = polygons[t] if hidden is None else polygons[t][~hidden[t]]
        for polygon in np.rint(shown).astype(np.int32):
            pen.polygon(polygon.ravel().tolist(), fill=255)
        low, high = shown.min((0, 1)), shown.max((0, 1))
        for hole in holes[t] if holes else ():
            pen.polygon(np.rint(low + hole * (high - low)).astype(np.int32).ravel().tolist(), fill=0)
        out[t] = np.where(np.asarray(image.reduce(2)) >= 128, 255, 0)
    return out


def blemishes(
    rng: np.random.Generator, shapes: Array, parts: list[str], noise: float
) -> tuple[Array, Array | None, Holes]:
    """Errors of a segmentation: ragged outlines, holes and slits, lost limbs; `noise` 0 (none) to 1 (poor).

    Returns:
        The outlines with ragged edges, the lost outlines bool [T,P], and the holes of every frame.
    """
    if noise == 0.0:
        return shapes, None, []
    frames, solids, corners = shapes.shape[:3]
    height = float(np.ptp(shapes[0, ..., 1]))
    ragged = rng.normal(size=(frames, solids, corners, 2)) * (0.012 * noise * height)
    shapes = (shapes + ragged).astype(np.float32)
    hidden = np.zeros((frames, solids), bool)
    names = np.array(parts)
    for limb in sorted({p for p in parts if p.split()[0] in ("left", "right")} | {"head"}):
        start, length = rng.integers(0, frames), rng.integers(1, 2 + frames // 4)
        if rng.random() < 0.22 * noise:  # lost for a while
            hidden[start : start + length] |= names == limb
        flicker = rng.random(frames) < 0.03 * noise
        hidden[flicker] |= names == limb
    fan = np.arange(8) * (2 * np.pi / 8)
    circle = np.stack([np.cos(fan), np.sin(fan)], -1)
    holes: Holes = []
    for _ in range(frames):
        count = rng.poisson(2.2 * noise)
        own = []
        for _ in range(count):
            centre = rng.uniform((0.15, 0.05), (0.85, 0.95))
            radius = rng.uniform(0.02, 0.03 + 0.05 * noise) * np.array([1.0, rng.uniform(0.3, 1.6)])
            own.append(centre + circle * radius * rng.uniform(0.6, 1.3, (8, 1)) * np.array([1.8, 1.0]))
        holes.append(own)
    return shapes, hidden, holes
