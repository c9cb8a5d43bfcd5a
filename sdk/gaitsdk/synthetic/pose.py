"""From joint angles to solids: forward kinematics, and flesh as convex hulls of pairs of ellipsoids.

World axes: x the walking direction, y to the walker's left, z up; metres. Every quantity is an array over the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.synthetic.body import Body
from gaitsdk.synthetic.covariates import Outfit, add_bag, add_coat
from gaitsdk.synthetic.gait import Motion, Style

Floats = NDArray[Any]
LONGEST_PATH = 2.4  # metres of floor that a camera sees; longer sequences are filmed by a camera that follows


class Solids:
    """Collects hulls of two ellipsoids: centres [T,3] and semi-axes [T,3,3] (rows are the axes), one part name each."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.centres: list[tuple[Floats, Floats]] = []
        self.axes: list[tuple[Floats, Floats]] = []
        self.parts: list[str] = []

    def hull(self, c1: Floats, a1: Floats, c2: Floats, a2: Floats, part: str) -> None:
        """The convex hull of two ellipsoids."""
        self.centres.append((c1, c2))
        self.axes.append((a1, a2))
        self.parts.append(part)

    def ellipsoid(self, centre: Floats, axes: Floats, part: str) -> None:
        """One ellipsoid."""
        self.hull(centre, axes, centre, axes, part)

    def capsule(self, c1: Floats, r1: float, c2: Floats, r2: float, part: str) -> None:
        """A limb: the hull of two spheres."""
        unit = np.broadcast_to(np.eye(3), (self.frames, 3, 3))
        self.hull(c1, r1 * unit, c2, r2 * unit, part)

    def stacked(self) -> tuple[Floats, Floats]:
        """Centres float32 [T,P,2,3] and axes float32 [T,P,2,3,3]."""
        centres = np.stack([np.stack(pair, 1) for pair in self.centres], 1).astype(np.float32)
        axes = np.stack([np.stack(pair, 1) for pair in self.axes], 1).astype(np.float32)
        return centres, axes


@dataclass(frozen=True)
class Pose:
    """Joints over the frames ([2,T,3] pairs are left, right) and the measures that clothes and bags hang on."""

    pelvis: Floats
    pelvis_turn: Floats  # [T,3,3] rotation
    waist: Floats
    trunk_turn: Floats  # [T,3,3]
    upper_turn: Floats  # [T,3,3] trunk plus stoop
    hips: Floats
    knees: Floats
    ankles: Floats
    soles: Floats  # [2,T,3,3] rotation of the foot
    toes: Floats  # [2,T,3,3] rotation of the toes
    shoulders: Floats
    elbows: Floats
    wrists: Floats
    hands: Floats
    neck: Floats
    head: Floats
    head_turn: Floats
    trunk: float
    chest_depth: float
    hip_breadth: float
    hip_depth: float
    thigh_radius: float

    def on_trunk(self, offset: Floats) -> Floats:
        """A point of the trunk given from the pelvis upwards (x forward, y left, z up), [T,3]."""
        return np.asarray(self.waist + self.trunk_turn @ (offset - np.array([0.0, 0.0, 0.2 * self.trunk])))

    def on_pelvis(self, offset: Floats) -> Floats:
        """A point fixed to the pelvis, [T,3]."""
        return np.asarray(self.pelvis + self.pelvis_turn @ offset)

    def trunk_axes(self, x: float, y: float, z: float) -> Floats:
        """Semi-axes aligned with the trunk, [T,3,3]."""
        return _axes(self.trunk_turn, x, y, z)

    def pelvis_axes(self, x: float, y: float, z: float) -> Floats:
        """Semi-axes aligned with the pelvis, [T,3,3]."""
        return _axes(self.pelvis_turn, x, y, z)


def _axes(turn: Floats, x: float, y: float, z: float) -> Floats:
    return np.asarray(np.swapaxes(turn, -1, -2) * np.array([x, y, z])[:, None])


def _turn(axis: int, angle: Floats) -> Floats:
    """Rotations [T,3,3] about axis 0, 1, 2 by `angle` [T] radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    out = np.zeros((*np.shape(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out[..., axis, axis] = 1.0
    out[..., i, i], out[..., j, j] = cos, cos
    out[..., i, j], out[..., j, i] = -sin, sin
    return out


def _limb(angle: Floats, spread: Floats | float, length: float) -> Floats:
    """A hanging segment swung forward by `angle` and out to +y by `spread` radians, [...,3]."""
    angle, spread = np.broadcast_arrays(angle, spread)
    parts = (np.sin(angle) * np.cos(spread), np.sin(spread), -np.cos(angle) * np.cos(spread))
    return np.asarray(length * np.stack(parts, -1))


def pose(body: Body, style: Style, motion: Motion) -> Pose:
    """Forward kinematics of one walk, feet on the ground (z = 0), centred on the middle of the path."""
    size = body.size
    sides = np.array([1.0, -1.0])[:, None]
    zero = np.zeros_like(motion.cycle)
    pelvis_turn = _turn(2, motion.pelvis_turn) @ _turn(0, motion.pelvis_drop)
    hips = np.stack([pelvis_turn @ np.array([0.0, s * 0.5 * size["hip_separation"], 0.0]) for s in (1, -1)])
    leg = size["thigh"] + size["shank"]
    inward = -sides * np.arcsin(np.clip((0.5 * size["hip_separation"] - 0.5 * style.step_width) / leg, -0.3, 0.3))
    inward = inward - motion.sway / leg
    hip, knee, ankle = motion.hip.T, motion.knee.T, motion.ankle.T
    knees = hips + _limb(hip, inward + sides * style.knee_out / size["thigh"], size["thigh"])
    ankles = knees + _limb(hip - knee, inward - sides * style.knee_out / size["shank"], size["shank"])
    pitch = np.clip(hip - knee + ankle, -1.3, 0.6)
    out = sides * np.radians(style.toe_out)[:, None] + 0.3 * motion.pelvis_turn
    soles = _turn(2, out) @ _turn(1, -pitch)
    toes = _turn(2, out) @ _turn(1, -(pitch + np.clip(-pitch - 0.1, 0.0, 0.6)))
    pelvis = _place(body, style, motion, ankles, soles)
    trunk = size["trunk"]
    waist = pelvis + pelvis_turn @ np.array([0.0, 0.0, 0.2 * trunk])
    trunk_turn = _turn(2, motion.shoulder_turn) @ _turn(0, motion.shoulder_sway) @ _turn(1, motion.lean)
    upper_turn = trunk_turn @ _turn(1, zero + motion.stoop)
    bend = waist + trunk_turn @ np.array([-0.01, 0.0, 0.42 * trunk])
    half = 0.5 * size["biacromial"] - 0.4 * size["upper_arm_radius"]
    up = 0.38 * trunk - 0.55 * size["upper_arm_radius"] + style.shoulder_rise
    shoulders = np.stack([bend + upper_turn @ np.array([0.0, s * half, up]) for s in (1, -1)])
    yaw = _turn(2, 0.7 * motion.shoulder_turn)
    spread = sides * np.radians(style.arm_spread)
    upper = _limb(motion.arm.T, spread, size["upper_arm"])
    lower = _limb((motion.arm + motion.elbow).T, spread * 0.6 - sides * np.radians(style.forearm_in), 1.0)
    upper, lower = (yaw @ upper[..., None])[..., 0], (yaw @ lower[..., None])[..., 0]
    elbows = shoulders + upper
    wrists = elbows + lower * size["forearm"]
    neck = bend + upper_turn @ np.array([0.0, 0.0, 0.38 * trunk + 0.01])
    head_turn = _turn(2, 0.3 * motion.shoulder_turn + motion.head_turn) @ _turn(1, motion.head_pitch)
    rise = size["neck"] + 0.5 * size["head_height"]
    lead = style.head_forward + 0.012 + 0.5 * rise * np.sin(motion.stoop + motion.lean)
    head = neck + np.stack([lead, zero, zero + rise - 0.01], -1)
    return Pose(
        pelvis, pelvis_turn, waist, trunk_turn, upper_turn, hips + pelvis, knees + pelvis, ankles + pelvis, soles, toes,
        shoulders, elbows, wrists, wrists + lower * size["hand"] * 0.5, neck, head, head_turn, trunk=trunk,
        chest_depth=size["chest_depth"], hip_breadth=size["hip_breadth"], hip_depth=size["hip_depth"],
        thigh_radius=size["thigh_radius"],
    )  # fmt: skip


def _place(body: Body, style: Style, motion: Motion, ankles: Floats, soles: Floats) -> Floats:
    """Where the pelvis is, [T,3]: the lowest foot touches the ground, the walk advances by its step length."""
    size = body.size
    drop = size["ankle_height"] + body.heel_height
    contacts = np.array([[-0.2 * size["foot"], 0.0, -drop], [0.55 * size["foot"], 0.0, -size["ankle_height"]]])
    heights = np.stack([(ankles + soles @ contact)[..., 2] for contact in contacts])
    lowest = heights.min(axis=(0, 1))
    lowest = lowest.mean() + style.bounce * (lowest - lowest.mean())
    x = 2 * 0.41 * body.stature * (motion.cycle - motion.cycle.mean())
    x = x * min(1.0, LONGEST_PATH / max(float(np.ptp(x)), 1e-9))
    return np.stack([x, motion.sway, -lowest], -1)


def flesh(body: Body, joints: Pose, outfit: Outfit) -> Solids:
    """All solids of the dressed walker."""
    solids = Solids(len(joints.pelvis))
    _trunk(solids, body, joints, outfit)
    _head(solids, body, joints)
    for side, name in enumerate(("left", "right")):
        _leg(solids, body, joints, outfit, side, name)
        _arm(solids, body, joints, outfit, side, name)
    if outfit.coat:
        add_coat(solids, joints, outfit)
    if outfit.bag:
        add_bag(solids, joints, outfit)
    return solids


def _trunk(solids: Solids, body: Body, joints: Pose, outfit: Outfit) -> None:
    """The trunk: a loft of elliptical sections from crotch to shoulders, so that its width depends on the view."""
    size, trunk = body.size, joints.trunk
    ease = outfit.top_ease + outfit.coat
    chest_b, chest_d = 0.5 * size["chest_breadth"] + ease, 0.5 * size["chest_depth"] + ease
    waist_b, waist_d = 0.5 * size["waist_breadth"] + ease, 0.5 * size["waist_depth"] + ease
    hip_b, hip_d = 0.5 * size["hip_breadth"] + 0.6 * ease, 0.5 * size["hip_depth"] + 0.6 * ease
    crotch = joints.on_pelvis(np.array([-0.004, 0.0, -0.10 * trunk]))
    rings = [
        (crotch, joints.pelvis_axes(0.80 * hip_d, 0.84 * hip_b, 0.02)),
        (joints.on_pelvis(np.array([-0.012, 0.0, 0.05 * trunk])), joints.pelvis_axes(hip_d, hip_b, 0.04)),
        (joints.on_trunk(np.array([body.belly, 0.0, 0.36 * trunk])), joints.trunk_axes(waist_d, waist_b, 0.03)),
        (joints.on_trunk(np.array([body.bust, 0.0, 0.68 * trunk])), joints.trunk_axes(chest_d, chest_b, 0.04)),
    ]
    shoulder = joints.shoulders.mean(0)
    top = _axes(joints.upper_turn, 0.72 * chest_d, 0.40 * size["biacromial"] + ease, 0.035)
    rings.append((shoulder + joints.upper_turn @ np.array([-0.012, 0.0, -0.03]), top))
    for (c1, a1), (c2, a2) in pairwise(rings):
        solids.hull(c1, a1, c2, a2, "trunk")
    neck = size["neck_radius"]
    collar = _axes(joints.upper_turn, 1.0 * neck, 1.25 * neck, 0.03)
    solids.hull(*rings[-1], joints.neck, collar, "trunk")
    for side in range(2):  # the slope from neck to shoulder
        ball = np.broadcast_to(np.eye(3) * (size["upper_arm_radius"] * 0.95 + ease), collar.shape)
        solids.hull(joints.neck - np.array([0.0, 0.0, 0.004]), collar, joints.shoulders[side], ball, "trunk")
    solids.capsule(joints.neck, neck, joints.head + np.array([-0.012, 0.0, -0.04]), 0.92 * neck, "head")


def _head(solids: Solids, body: Body, joints: Pose) -> None:
    """Skull, jaw and hair."""
    size, turn = body.size, joints.head_turn
    length, breadth, height = (0.5 * size[f"head_{k}"] for k in ("length", "breadth", "height"))
    hair = body.hair_volume
    skull = _axes(turn, 0.92 * length + hair, breadth + hair, 0.72 * height + hair)
    jaw = _axes(turn, 0.55 * length, 0.72 * breadth, 0.40 * height)
    solids.hull(
        joints.head + turn @ np.array([-0.08 * length, 0.0, 0.28 * height]), skull,
        joints.head + turn @ np.array([0.30 * length, 0.0, -0.58 * height]), jaw, "head",
    )  # fmt: skip
    if body.hair_length:
        crown = joints.head + turn @ np.array([-0.25 * length, 0.0, 0.15 * height])
        tip = joints.neck + np.array([-0.045, 0.0, size["neck"] * 0.6 - 0.5 * body.hair_length])
        end = _axes(turn, 0.030, 0.85 * breadth, 0.03)
        solids.hull(crown, _axes(turn, 0.75 * length + hair, breadth + hair, 0.5 * height), tip, end, "head")


def _leg(solids: Solids, body: Body, joints: Pose, outfit: Outfit, side: int, name: str) -> None:
    """Thigh, calf and foot of one side (0 left, 1 right)."""
    size, ease = body.size, outfit.trouser_ease
    hip, knee, ankle = joints.hips[side], joints.knees[side], joints.ankles[side]
    sole, toe = joints.soles[side], joints.toes[side]
    down = ankle - knee
    back = np.cross(np.array([0.0, 1.0, 0.0]), down / size["shank"])  # points behind the shank
    top = hip + 0.10 * (knee - hip)
    solids.capsule(top, size["thigh_radius"] * 1.04 + ease, knee, size["knee_radius"] + ease, f"{name} thigh")
    calf = knee + 0.30 * down + body.calf_bulge * back
    solids.capsule(knee, size["knee_radius"] + ease, calf, size["calf_radius"] + ease, f"{name} shank")
    hem = size["ankle_radius"] + 0.8 * ease + body.trouser_flare
    solids.capsule(calf, size["calf_radius"] + ease, ankle - 0.06 * down, hem, f"{name} shank")
    foot, high, half = size["foot"], size["ankle_height"], 0.5 * size["foot_breadth"]
    heel = ankle + sole @ np.array([-0.22 * foot + 0.012, 0.0, 0.034 - high - body.heel_height])
    ball = ankle + sole @ np.array([0.50 * foot, 0.0, 0.027 - high])
    tip = ball + toe @ np.array([0.28 * foot - 0.022 + body.shoe, 0.0, -0.006])
    heel_axes, ball_axes = _axes(sole, 0.036, 0.66 * half, 0.034), _axes(sole, 0.038, 1.05 * half, 0.027)
    instep = np.broadcast_to(np.eye(3) * (size["ankle_radius"] + 0.007), ball_axes.shape)
    part = f"{name} foot"
    solids.hull(ankle, instep, heel, heel_axes, part)
    solids.hull(ankle + sole @ np.array([0.015, 0.0, -0.005]), instep, ball, ball_axes, part)
    solids.hull(heel, heel_axes, ball, ball_axes, part)
    solids.hull(ball, ball_axes, tip, _axes(toe, 0.024, 0.80 * half, 0.020), part)


def _arm(solids: Solids, body: Body, joints: Pose, outfit: Outfit, side: int, name: str) -> None:
    """Upper arm, forearm and hand of one side."""
    size, ease = body.size, 0.7 * outfit.top_ease + 0.6 * outfit.coat
    shoulder, elbow, wrist, hand = (j[side] for j in (joints.shoulders, joints.elbows, joints.wrists, joints.hands))
    radius = size["upper_arm_radius"]
    solids.capsule(shoulder, radius * 1.10 + ease, elbow, 0.82 * radius + ease, f"{name} arm")
    solids.capsule(elbow, size["forearm_radius"] + ease, wrist, size["wrist_radius"] + 0.8 * ease, f"{name} forearm")
    solids.capsule(wrist, size["wrist_radius"], hand, 0.024, f"{name} forearm")
