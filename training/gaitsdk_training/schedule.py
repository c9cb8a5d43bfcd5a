"""Learning rates over a run, by step count or by elapsed time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from gaitsdk.errors import OptionError

SCHEDULES = ("cosine", "onecycle", "linear", "constant")
#: A further one, which needs milestones: constant, and times `STEP_FACTOR` from each of them on.
MULTISTEP = "multistep"
STEP_FACTOR = 0.1


def rate_factor(schedule: str, progress: float, warmup: float, final: float, milestones: Sequence[float] = ()) -> float:
    """Factor on the peak learning rate.

    Args:
        schedule: "cosine" or "linear": linear warm-up, then down to `final`; "onecycle": both ways along a cosine, from
            1/25 of the peak; "constant": warm-up only; "multistep": constant, and a tenth from each milestone on.
        progress: share of the run that is done, 0..1.
        warmup: share of the run until the peak.
        final: factor at the end; "constant" and "multistep" have none.
        milestones: of "multistep", as shares of the run.

    Raises:
        OptionError: unknown schedule.
    """
    known = (*SCHEDULES, MULTISTEP)
    if schedule not in known:
        raise OptionError("unknown schedule", where="schedule", got=repr(schedule), expected=", ".join(known))
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        share = progress / warmup
        return 0.04 + 0.96 * 0.5 * (1.0 - math.cos(math.pi * share)) if schedule == "onecycle" else max(share, 0.01)
    if schedule == "constant":
        return 1.0
    if schedule == MULTISTEP:
        return float(STEP_FACTOR ** sum(progress >= each for each in milestones))
    share = (progress - warmup) / max(1.0 - warmup, 1e-9)
    left = 1.0 - share if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return final + (1.0 - final) * left


class Budget:
    """How far a run is: by steps, or by minutes where those are limited and run out first.

    Args:
        steps: of the whole run.
        max_minutes: of the whole run, None = no limit. With a limit, a run is not reproducible step by step.
        elapsed: seconds that an earlier part of the run has taken.
    """

    def __init__(self, steps: int, max_minutes: float | None, elapsed: float = 0.0) -> None:
        self.steps, self.max_minutes = steps, max_minutes
        self._start = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, without the time between its parts."""
        return time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """Share of the run that is done after `step` steps; at least 1 = over."""
        by_steps = step / self.steps if self.steps else 1.0
        return by_steps if self.max_minutes is None else max(by_steps, self.elapsed / (60.0 * self.max_minutes))
