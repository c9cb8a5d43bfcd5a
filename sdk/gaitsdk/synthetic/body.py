"""Bodies: the limb lengths and girths of one synthetic person, drawn after published anthropometric tables.

Sources, by name: statures, breadths, depths and girths follow the 2012 U.S. Army anthropometric survey (ANSUR II, men
and women), with the spread of the weight factor widened towards civilians (NHANES 2015-2018); segment lengths as
fractions of stature follow Drillis and Contini (1966) as printed in Winter, "Biomechanics and Motor Control of Human
Movement". The figures are set by hand near those sources, not transcribed from
their tables: they aim at a plausible crowd, not at a reproduction of the surveys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

# (mean man, mean woman, coefficient of variation, correlation with the weight factor); means are fractions of stature.
# Lengths scatter by about 3 % between people of one stature (crotch height / stature: SD 0.011 of 0.48), soft girths
# by 7 to 11 %.
_TABLE: dict[str, tuple[float, float, float, float]] = {
    "thigh": (0.245, 0.246, 0.030, 0.0),
    "shank": (0.246, 0.243, 0.032, 0.0),
    "ankle_height": (0.041, 0.041, 0.05, 0.0),
    "foot": (0.154, 0.150, 0.035, 0.1),
    "foot_breadth": (0.058, 0.056, 0.05, 0.3),
    "hip_separation": (0.100, 0.104, 0.05, 0.1),
    "trunk": (0.288, 0.286, 0.028, 0.0),
    "biacromial": (0.222, 0.210, 0.045, 0.15),
    "upper_arm": (0.183, 0.181, 0.032, 0.0),
    "forearm": (0.146, 0.143, 0.035, 0.0),
    "hand": (0.108, 0.107, 0.04, 0.0),
    "neck": (0.052, 0.054, 0.12, -0.1),
    "head_height": (0.130, 0.133, 0.035, 0.0),
    "head_length": (0.113, 0.115, 0.035, 0.1),
    "head_breadth": (0.088, 0.090, 0.035, 0.1),
    "chest_breadth": (0.170, 0.160, 0.055, 0.70),
    "chest_depth": (0.136, 0.142, 0.075, 0.75),
    "waist_breadth": (0.160, 0.154, 0.085, 0.85),
    "waist_depth": (0.122, 0.118, 0.110, 0.90),
    "hip_breadth": (0.188, 0.205, 0.055, 0.75),
    "hip_depth": (0.136, 0.143, 0.075, 0.75),
    "thigh_radius": (0.0515, 0.0545, 0.075, 0.75),
    "knee_radius": (0.0345, 0.0350, 0.055, 0.65),
    "calf_radius": (0.0345, 0.0355, 0.065, 0.65),
    "ankle_radius": (0.0210, 0.0205, 0.055, 0.45),
    "upper_arm_radius": (0.0285, 0.0270, 0.085, 0.70),
    "forearm_radius": (0.0245, 0.0225, 0.065, 0.65),
    "wrist_radius": (0.0155, 0.0148, 0.05, 0.45),
    "neck_radius": (0.0350, 0.0310, 0.060, 0.60),
}
_STATURE = ((1.752, 0.070), (1.630, 0.065))  # metres, mean and SD, men and women


@dataclass(frozen=True)
class Body:
    """One person's measures in metres: `size` has the names of the table above, the rest is clothes, hair, shape."""

    female: bool
    stature: float
    weight_factor: float
    size: dict[str, float]
    trouser_ease: float  # how far everyday trousers stand off the leg
    trouser_flare: float  # extra radius at the hem
    top_ease: float  # how far an everyday top stands off the trunk and arms
    heel_height: float
    shoe: float  # how far the shoe reaches beyond the toes
    hair_volume: float  # radius added around the skull
    hair_length: float  # how far hair hangs down behind the neck; 0 = short
    belly: float  # forward shift of the waist section
    bust: float  # forward shift of the chest section
    calf_bulge: float  # forward(-)/backward(+) shift of the calf section


def draw_body(rng: np.random.Generator) -> Body:
    """Draw one person. The weight factor (a standard score of relative body mass) moves all soft girths together."""
    female = bool(rng.random() < 0.5)
    mean, sd = _STATURE[int(female)]
    stature = float(np.clip(rng.normal(mean, sd), mean - 2.5 * sd, mean + 2.5 * sd))
    # relative body mass is skewed towards heavy in every survey
    weight = float(np.clip(rng.normal() + 0.25 * abs(rng.normal()) - 0.35, -2.0, 2.6))
    legs = float(rng.normal())  # long-leggedness: thigh and shank grow, the trunk shrinks
    size = {}
    for name, (man, woman, variation, correlation) in _TABLE.items():
        own = float(np.clip(rng.normal(), -2.3, 2.3))
        score = correlation * weight + np.sqrt(1 - correlation**2) * own
        if name in ("thigh", "shank", "trunk"):
            score = 0.6 * (legs if name != "trunk" else -legs) + 0.8 * own
        size[name] = float((woman if female else man) * (1.0 + variation * score) * stature)
    long_hair = rng.random() < (0.6 if female else 0.06)
    return Body(
        female=female,
        stature=stature,
        weight_factor=weight,
        size=size,
        trouser_ease=float(rng.uniform(0.003, 0.016)),
        trouser_flare=float(rng.choice([0.0, 0.008, 0.02], p=[0.45, 0.35, 0.2]) * rng.uniform(0.6, 1.4)),
        top_ease=float(rng.uniform(0.003, 0.018)),
        heel_height=float(rng.uniform(0.0, 0.035)) if female else float(rng.uniform(0.0, 0.015)),
        shoe=float(rng.uniform(0.004, 0.030)),
        hair_volume=float(rng.uniform(0.002, 0.016)),
        hair_length=float(rng.uniform(0.08, 0.24)) if long_hair else 0.0,
        belly=float(0.008 + 0.010 * max(weight, 0.0) + 0.004 * rng.normal()),
        bust=float((0.018 if female else 0.006) + 0.006 * rng.normal()),
        calf_bulge=float(0.012 + 0.004 * rng.normal()),
    )
