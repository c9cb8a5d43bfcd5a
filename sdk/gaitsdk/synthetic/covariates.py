"""What a person wears and carries: the condition types of CASIA-B (normal, bag, coat), drawn per walk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import OptionError
from gaitsdk.synthetic.body import Body

if TYPE_CHECKING:
    from gaitsdk.synthetic.pose import Pose, Solids

#: The ten walks per person of CASIA-B: six normal, two with a bag, two in a coat.
TYPES: tuple[str, ...] = (*(f"nm-{i:02d}" for i in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02")

_CONDITIONS = ("nm", "bg", "cl")
_TYPE = re.compile(r"(nm|bg|cl)-(\d\d)")
Floats = NDArray[Any]

# depth, breadth, height and `bag_height` (see Outfit): least and most
_BAGS = {
    "backpack": ((0.10, 0.24), (0.24, 0.36), (0.34, 0.54), (0.40, 0.62)),
    "shoulder": ((0.20, 0.38), (0.07, 0.15), (0.18, 0.32), (0.80, 1.10)),
    "hand": ((0.20, 0.40), (0.07, 0.14), (0.18, 0.34), (0.05, 0.14)),
}


def type_numbers(name: object) -> tuple[int, int]:
    """('bg-02') -> (1, 2): the condition's place in nm, bg, cl and the walk's number.

    Raises:
        OptionError: not a name of the form nm-01, bg-01 or cl-01 (numbers 01 to 99).
    """
    found = _TYPE.fullmatch(name) if isinstance(name, str) else None
    if found is None or found[2] == "00":
        raise OptionError(
            "Unknown walk type",
            where="type",
            got=repr(name),
            expected="nm-NN (normal), bg-NN (bag) or cl-NN (coat) with NN from 01 to 99",
            fix=f"use one of {', '.join(TYPES)}",
        )
    return _CONDITIONS.index(found[1]), int(found[2])


@dataclass(frozen=True)
class Outfit:
    """Clothes and bag of one walk, in metres. `bag` is "" or backpack, shoulder, hand; `side` +1 left, -1 right."""

    bag: str
    side: int
    bag_size: tuple[float, float, float]  # depth, breadth, height
    bag_height: float  # backpack: share of the trunk; shoulder: share of the trunk below its top; hand: strap in metres
    across: bool  # shoulder bag: strap from the other shoulder
    coat: float  # thickness; 0 = none
    coat_fall: float  # hem below the hip joint as a fraction of the thigh (> 1: below the knee)
    coat_flare: float
    hood: bool
    top_ease: float
    trouser_ease: float

    def carry(self) -> dict[str, Any]:
        """What the load does to the gait: the arguments of `gait.draw_motion`."""
        arm_gain, elbow = np.ones(2), np.zeros(2)
        near = 0 if self.side > 0 else 1
        effect: dict[str, Any] = {}
        if self.bag == "backpack":
            effect.update(lean=2.5, stoop=2.0)
            arm_gain *= 0.9
        elif self.bag == "hand":
            arm_gain[near] = 0.4
            elbow[near] = -16.0
        elif self.bag == "shoulder":
            arm_gain[near] = 0.7
        if self.coat:
            arm_gain *= 0.88
        effect.update(arm_gain=arm_gain, elbow_add=elbow)
        return effect


def draw_outfit(rng: np.random.Generator, condition: int, body: Body) -> Outfit:
    """Draw clothes and bag for one walk of `condition` 0 (normal), 1 (bag) or 2 (coat)."""
    bag, size, height = "", [0.0, 0.0, 0.0], 0.0
    side = 1 if rng.random() < 0.5 else -1
    across = bool(rng.random() < 0.4)
    if condition == 1:
        bag = str(rng.choice(list(_BAGS), p=[0.4, 0.35, 0.25]))
        low, high = np.array(_BAGS[bag]).T
        *size, height = (float(x) for x in rng.uniform(low, high))
    coat = fall = flare = 0.0
    if condition == 2:
        coat = rng.uniform(0.012, 0.036)
        fall = rng.uniform(0.05, 0.45) if rng.random() < 0.5 else rng.uniform(0.5, 1.25)
        flare = rng.uniform(0.0, 0.10)
    return Outfit(
        bag=bag,
        side=side,
        bag_size=(size[0], size[1], size[2]),
        bag_height=height,
        across=across,
        coat=float(coat),
        coat_fall=float(fall),
        coat_flare=float(flare),
        hood=bool(condition == 2 and rng.random() < 0.2),
        # the same person does not wear the very same clothes on every walk
        top_ease=float(body.top_ease * rng.uniform(0.65, 1.45)),
        trouser_ease=float(body.trouser_ease * rng.uniform(0.65, 1.45)),
    )


def add_bag(solids: Solids, pose: Pose, outfit: Outfit) -> None:
    """Add the bag's solids: rounded boxes (hulls of two flat ellipsoids), its strap a thin capsule."""
    depth, breadth, height = outfit.bag_size
    if outfit.bag == "backpack":
        back = 0.5 * pose.chest_depth + 0.42 * depth
        low, high = outfit.bag_height - 0.5 * height / pose.trunk, outfit.bag_height + 0.5 * height / pose.trunk
        ends = [
            pose.on_trunk(np.array([-back, 0.0, (z + shift) * pose.trunk]))
            for z, shift in ((low, 0.06), (min(high, 1.02), -0.06))
        ]
        axes = pose.trunk_axes(0.56 * depth, 0.55 * breadth, 0.07)
        solids.hull(ends[0], axes, ends[1], pose.trunk_axes(0.42 * depth, 0.50 * breadth, 0.07), "bag")
        return
    if outfit.bag == "shoulder":
        top = pose.shoulders[1 if (outfit.side > 0) == outfit.across else 0]
        beside, above = 0.5 * (pose.hip_breadth + breadth), (1.0 - outfit.bag_height) * pose.trunk + 0.02
        centre = pose.on_pelvis(np.array([-0.02, outfit.side * beside, above]))
        solids.capsule(top + np.array([0.0, 0.0, 0.02]), 0.025, centre, 0.02, "bag")
    else:
        near = 0 if outfit.side > 0 else 1
        centre = pose.hands[near] - np.array([0.0, 0.0, outfit.bag_height + 0.5 * height])
        solids.capsule(pose.hands[near], 0.012, centre, 0.03, "bag")
    lift = np.array([0.0, 0.0, 0.30 * height])
    axes = pose.pelvis_axes(0.5 * depth, 0.5 * breadth, 0.24 * height)
    solids.hull(centre + lift, axes * 0.92, centre - lift, axes, "bag")


def add_coat(solids: Solids, pose: Pose, outfit: Outfit) -> None:
    """Add the coat's skirt: hips to a hem that follows both thighs (its thickness elsewhere is in the girths)."""
    fall = min(outfit.coat_fall, 1.0)
    points = pose.hips + (pose.knees - pose.hips) * fall
    if outfit.coat_fall > 1.0:
        points = points + (pose.ankles - pose.knees) * (outfit.coat_fall - 1.0)
    middle = points.mean(0)
    apart = np.abs(points[0] - points[1])
    ease = outfit.coat + outfit.coat_flare * fall * 0.6
    axes = np.zeros((len(middle), 3, 3))
    radius = pose.thigh_radius * (1.0 - 0.25 * fall)
    axes[:, 0, 0] = 0.5 * apart[:, 0] + radius + ease
    axes[:, 1, 1] = np.maximum(0.5 * apart[:, 1] + radius, 0.40 * pose.hip_breadth) + ease
    axes[:, 2, 2] = 0.015
    top = pose.pelvis_axes(0.5 * pose.hip_depth + outfit.coat, 0.5 * pose.hip_breadth + outfit.coat, 0.03)
    solids.hull(pose.pelvis, top, middle, axes, "coat")
    if outfit.hood:
        collar = pose.on_trunk(np.array([-0.035, 0.0, 1.06 * pose.trunk]))
        solids.ellipsoid(collar, pose.trunk_axes(0.075, 0.095, 0.055), "coat")
