"""Walks: joint-angle curves over the gait cycle, one person's style, and one walk of that person.

Hip, knee and ankle curves are Fourier series fitted to points set by hand after Winter, "The Biomechanics and Motor
Control of Human Gait" (1991), and Kadaba et al. (1990): hip +32 to -10 degrees, knee about 18 degrees after loading and
62 degrees in swing, ankle between +10 (late stance) and -19 degrees (toe off). Phase 0 is that leg's heel strike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

# mean and (cosine, sine) of harmonics 1..6, degrees
HIP = (14.02, ((20.25, -3.66), (-3.68, -1.52), (-0.03, 1.09), (-0.28, -0.01), (-0.20, 0.25), (-0.05, 0.09)))
KNEE = (23.40, ((-1.42, -20.81), (-14.14, 5.83), (-1.86, 4.42), (-0.60, 0.71), (-0.15, 0.25), (-0.06, 0.08)))
ANKLE = (-0.50, ((-0.69, 7.10), (1.22, -7.76), (-3.10, 0.54), (2.08, -0.40), (-0.10, -0.80), (0.43, 0.20)))
PELVIC_TILT = 9.0  # degrees that the hip curve counts from the tilted pelvis

Table = tuple[float, tuple[tuple[float, float], ...]]
Curve = tuple[float, Floats]  # mean and complex amplitude per harmonic


def fourier(phase: Floats, curve: Curve) -> Floats:
    """Evaluate a curve at `phase` (cycles, any shape); degrees, float64, same shape."""
    mean, amplitudes = curve
    orders = np.arange(1, len(amplitudes) + 1)
    angle = 2.0 * np.pi * phase[..., None] * orders
    return np.asarray(mean + (amplitudes.real * np.cos(angle) + amplitudes.imag * np.sin(angle)).sum(-1))


def _vary(rng: np.random.Generator, table: Table, offset: float, spread: float) -> Curve:
    """A person's own curve: gain, a small delay, harmonics a little different, mean off by `offset` degrees (SD)."""
    mean, pairs = table
    amplitudes = np.array([complex(a, b) for a, b in pairs])
    delay = rng.normal(0.0, 0.012)
    orders = np.arange(1, len(pairs) + 1)
    gain = 1.0 + spread * rng.normal()
    own = 1.0 + spread * (rng.normal(size=len(pairs)) + 1j * rng.normal(size=len(pairs)))
    return float(mean + rng.normal(0.0, offset)), amplitudes * gain * own * np.exp(1j * 2 * np.pi * delay * orders)


@dataclass(frozen=True)
class Style:
    """How one person walks; angles in degrees, lengths in metres. Two-element arrays are (left, right)."""

    cadence: float  # steps per minute
    hip: Curve
    knee: Curve
    ankle: Curve
    gain: Floats  # [2] amplitude per side
    half_cycle: float  # phase of the right leg's heel strike after the left's, 0.5 if symmetric
    step_width: float
    knee_out: float
    toe_out: Floats  # [2]
    pelvis_turn: float
    pelvis_drop: float
    sway: float
    lean: float
    stoop: float
    head_pitch: float
    head_turn: float
    head_forward: float
    shoulder_turn: float
    shoulder_turn_phase: float
    shoulder_sway: float
    shoulder_rise: float
    arm_swing: Floats  # [2]
    arm_mean: Floats  # [2]
    arm_phase: float
    elbow_mean: Floats  # [2]
    elbow_swing: float
    arm_spread: float
    forearm_in: float
    bounce: float


def draw_style(rng: np.random.Generator, female: bool) -> Style:
    """Draw one person's gait. Spreads between people are those of the literature (joint angles: SD 4 to 6 degrees)."""
    n = rng.normal
    swing = float(np.clip(n(16.0, 6.5), 3.0, 34.0))
    elbow = float(np.clip(n(24.0, 10.0), 6.0, 60.0))
    return Style(
        cadence=float(np.clip(n(116.0 if female else 110.0, 7.5), 92.0, 134.0)),
        hip=_vary(rng, HIP, 2.5, 0.09),
        knee=_vary(rng, KNEE, 3.0, 0.07),
        ankle=_vary(rng, ANKLE, 2.5, 0.16),
        gain=1.0 + 0.025 * n(size=2),
        half_cycle=0.5 + 0.008 * float(n()),
        step_width=float(np.clip(n(0.085 if female else 0.105, 0.030), 0.01, 0.2)),
        knee_out=float(n(0.0, 0.011)),
        toe_out=n(7.0, 6.0) + 2.0 * n(size=2),
        pelvis_turn=float(np.clip(n(5.0, 2.5), 0.5, 12.0)),
        pelvis_drop=float(np.clip(n(4.5 if female else 3.2, 1.5), 0.2, 9.0)),
        sway=float(np.clip(n(0.020, 0.008), 0.0, 0.05)),
        lean=float(n(3.0, 2.6)),
        stoop=float(np.clip(n(6.5, 5.5), -4.0, 24.0)),
        head_pitch=float(n(4.0, 6.0)),
        head_turn=float(n(0.0, 4.0)),
        head_forward=float(np.clip(n(0.012, 0.012), -0.015, 0.05)),
        shoulder_turn=float(np.clip(n(5.5, 2.5), 0.3, 13.0)),
        shoulder_turn_phase=float(n(0.0, 0.03)),
        shoulder_sway=float(np.clip(n(1.5, 1.5), -2.0, 6.0)),
        shoulder_rise=float(n(0.0, 0.012)),
        arm_swing=swing * (1.0 + np.clip(n(0.0, 0.20) * np.array([1.0, -1.0]) + 0.05 * n(size=2), -0.7, 0.7)),
        arm_mean=n(-2.0, 5.0) + 2.0 * n(size=2),
        arm_phase=float(n(0.0, 0.025)),
        elbow_mean=elbow + 4.0 * n(size=2),
        elbow_swing=float(np.clip(n(9.0, 5.0), 0.0, 22.0)),
        arm_spread=float(np.clip(n(9.0, 3.5), 3.0, 20.0)),
        forearm_in=float(n(3.0, 5.0)),
        bounce=float(np.clip(n(1.0, 0.2), 0.4, 1.6)),
    )


@dataclass(frozen=True)
class Motion:
    """Joint angles of one walk, radians, float64 [T] or [T,2] (left, right); `cycle` in cycles, lengths in metres."""

    cycle: Floats
    hip: Floats
    knee: Floats
    ankle: Floats
    pelvis_turn: Floats
    pelvis_drop: Floats
    sway: Floats
    shoulder_turn: Floats
    shoulder_sway: Floats
    lean: Floats
    stoop: float
    head_pitch: Floats
    head_turn: Floats
    arm: Floats
    elbow: Floats


def draw_motion(rng: np.random.Generator, style: Style, frames: int, rate: float, carry: dict[str, Any]) -> Motion:
    """One walk of `frames` frames at `rate` per second: style, and what differs between two walks of one person.

    `carry` may hold `lean`, `stoop` (degrees added), `arm_gain`, `elbow_add` ([2]): what a bag or a coat changes.
    """
    n = rng.normal
    speed = float(np.clip(1.0 + 0.045 * n(), 0.87, 1.13))  # stride and cadence both rise with speed
    start = rng.random()
    drift = np.cumsum(n(0.0, 0.0015, frames))  # steps are not metronomic
    cycle = start + np.arange(frames) * (style.cadence * speed**0.6 / 120.0 / rate) + drift
    phase = np.stack([cycle, cycle - style.half_cycle], -1)
    gain = style.gain * speed**0.7 * (1.0 + 0.015 * n(size=2))
    hip = _about_mean(style.hip, phase, gain) - PELVIC_TILT + n(0.0, 0.8)
    knee = np.maximum(_about_mean(style.knee, phase, gain * (1 + 0.02 * n())) + n(0.0, 1.0), 0.0)
    ankle = _about_mean(style.ankle, phase, 1.0 + 0.04 * n()) + n(0.0, 1.0)
    swing = style.arm_swing * speed * (1.0 + 0.10 * n()) * np.asarray(carry.get("arm_gain", (1.0, 1.0)))
    # the arm is furthest forward at the other leg's heel strike
    forward = -np.cos(2 * np.pi * (phase - style.arm_phase))
    arm = style.arm_mean + n(0.0, 1.2) + swing * forward
    elbow = style.elbow_mean + n(0.0, 2.5) + np.asarray(carry.get("elbow_add", (0.0, 0.0)))
    bend = np.cos(2 * np.pi * (phase - style.arm_phase - 0.54))  # the elbow bends most just after the arm is forward
    elbow = np.maximum(elbow + style.elbow_swing * (swing / 20.0) * bend, 3.0)
    turn = np.cos(2 * np.pi * cycle)
    trunk = style.lean + carry.get("lean", 0.0) + n(0.0, 0.7)
    return Motion(
        cycle=cycle,
        hip=np.radians(hip),
        knee=np.radians(knee),
        ankle=np.radians(ankle),
        pelvis_turn=np.radians(-style.pelvis_turn * turn),
        pelvis_drop=np.radians(style.pelvis_drop * np.sin(2 * np.pi * (cycle + 0.02))),
        sway=style.sway * np.sin(2 * np.pi * (cycle - 0.04)),
        shoulder_turn=np.radians(style.shoulder_turn * np.cos(2 * np.pi * (cycle - style.shoulder_turn_phase))),
        shoulder_sway=np.radians(-style.shoulder_sway * np.sin(2 * np.pi * cycle)),
        lean=np.radians(trunk + 1.0 * np.cos(4 * np.pi * (cycle - 0.05))),
        stoop=float(np.radians(style.stoop + carry.get("stoop", 0.0) + n(0.0, 1.0))),
        head_pitch=np.radians(style.head_pitch + n(0.0, 3.0) + 0.8 * np.cos(4 * np.pi * cycle)),
        head_turn=np.radians(style.head_turn + n(0.0, 5.0) + np.zeros(frames)),
        arm=np.radians(arm),
        elbow=np.radians(elbow),
    )


def _about_mean(curve: Curve, phase: Floats, gain: Floats | float) -> Floats:
    """The curve with its oscillation multiplied by `gain` and its mean kept; degrees."""
    return np.asarray(curve[0] + (fourier(phase, curve) - curve[0]) * gain)
