"""What of GaitMPL moves with the training: delta_t (Eq. 3), s_t (section IV-B) and gamma_t (Eq. 11, Table IX).

With x = t / T, held between 0 and 1 (beyond its end a run keeps the last value):

    delta_t = delta_min + (1 + cos(angle)) / 2 * epsilon
    s_t     = gamma_t = sin(pi x / 2)

Eq. 3 prints angle = pi x / 2, which takes delta from delta_min + epsilon to delta_min + epsilon / 2: from 1.5 to 0.8,
never to its minimum. `progress="to_minimum"` takes angle = pi x, which ends at delta_min. The paper names the other
curves of Table IX without formulas; those here run from 0 to 1 without ever falling.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gaitsdk.errors import OptionError

#: Readings of Eq. 3.
PROGRESS = ("printed", "to_minimum")

_CURVES: dict[str, Callable[[float], float]] = {
    "equal": lambda x: 1.0,
    "multi-step": lambda x: min(math.floor(4.0 * x) + 1, 4) / 4.0,
    "logarithmic": lambda x: math.log1p((math.e - 1.0) * x),
    "exponential": lambda x: math.expm1(x) / (math.e - 1.0),
    "polynomial": lambda x: x * x,
    "sine": lambda x: math.sin(0.5 * math.pi * x),
}
#: Kinds of s_t and gamma_t: the rows of Table IX.
FUSIONS = tuple(_CURVES)


def delta_at(
    step: float, total: float, delta_min: float = 0.1, epsilon: float = 1.4, progress: str = "printed"
) -> float:
    """delta_t of Eq. 3, in units of the distance; it falls.

    Args:
        step: t, 0..total (steps, or any other measure of time).
        total: T, positive.
        delta_min, epsilon: as in Eq. 3.
        progress: "printed" ends at delta_min + epsilon / 2, "to_minimum" at delta_min.

    Raises:
        OptionError: total not positive, step negative, unknown progress, or delta would not stay positive.
    """
    if progress not in PROGRESS:
        raise OptionError("unknown progress", where="progress", got=repr(progress), expected=" or ".join(PROGRESS))
    if not delta_min > 0.0 or not epsilon >= 0.0:
        raise OptionError(
            "delta would not stay positive",
            where="delta_at",
            got=f"delta_min={delta_min}, epsilon={epsilon}",
            expected="delta_min > 0 and epsilon >= 0",
        )
    angle = math.pi * _share(step, total)
    return delta_min + 0.5 * (1.0 + math.cos(0.5 * angle if progress == "printed" else angle)) * epsilon


def smoothness_at(step: float, total: float, kind: str = "sine") -> float:
    """s_t of Eq. 7; "equal" is without smoothness factor (Table VI, w/o SF). Arguments as for `fusion_at`."""
    return fusion_at(step, total, kind)


def fusion_at(step: float, total: float, kind: str = "sine") -> float:
    """gamma_t of Eq. 11.

    Args:
        step: t, 0..total.
        total: T, positive.
        kind: with x = t / T: "equal" 1; "multi-step" 1/4, 2/4, 3/4, 1, a quarter of the run each; "logarithmic"
            log(1 + (e - 1) x); "exponential" (e^x - 1) / (e - 1); "polynomial" x^2; "sine" sin(pi x / 2).

    Returns:
        Between 0 and 1.

    Raises:
        OptionError: unknown kind, total not positive, or step negative.
    """
    if kind not in _CURVES:
        raise OptionError("unknown kind", where="kind", got=repr(kind), expected=", ".join(FUSIONS))
    return _CURVES[kind](_share(step, total))


def _share(step: float, total: float) -> float:
    if not total > 0 or not step >= 0:
        raise OptionError(
            "no such moment of a run", where="step and total", got=f"{step} of {total}", expected="0 <= step, 0 < total"
        )
    return min(step / total, 1.0)
