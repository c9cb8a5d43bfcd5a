"""When a request is sent again: only where that can help, where it can do no harm, and inside the caller's time."""

from __future__ import annotations

import random
import time

from gaitsdk.errors import (
    AnswerError,
    DeadlineExceededError,
    GaitError,
    OptionError,
    ServerError,
    ServerUnavailableError,
)

#: Seconds for a request with all of its attempts, by default.
TIMEOUT = 10.0
#: Further attempts by default: enough for a connection that went stale and a queue that was full for a moment, too few
#: to keep a server down that is overloaded.
RETRIES = 2
#: Seconds before the second attempt, at most; four times as long before each further one.
FIRST_PAUSE = 0.1


class Attempts:
    """The attempts at one request, which share one budget of time.

    Args:
        budget: seconds for all attempts and the pauses between them.
        retries: further attempts after the first.
        repeatable: whether carrying the request out twice does no harm. What is not repeatable is sent again only
            where it certainly did not reach the server.
    """

    def __init__(self, budget: float, retries: int, repeatable: bool) -> None:
        self._started = time.monotonic()
        self._budget, self._retries, self._repeatable = budget, retries, repeatable
        self._made = 0

    def remaining(self) -> float:
        """Seconds left, never zero: what an attempt gets as its time-out."""
        return max(self._started + self._budget - time.monotonic(), 1e-3)

    def pause_after(self, error: GaitError) -> float | None:
        """Seconds to wait before the next attempt, or None where there is none: the error, whose message now tells of
        the attempts, is final."""
        self._made += 1
        # Clients that were refused together must not come back together.
        pause: float = FIRST_PAUSE * 4 ** (self._made - 1) * random.uniform(0.5, 1)
        if self._made <= self._retries and self._helps(error) and pause < self.remaining():
            return pause
        if self._made > 1:
            elapsed = time.monotonic() - self._started
            error.amend(got=f"{error.got or 'the same'} ({self._made} attempts in {elapsed:.2g} s)")
        if not self._repeatable and isinstance(error, ServerError) and may_have_happened(error):
            error.outcome_unknown, error.retryable = True, False
            error.amend(fix="it may have been carried out all the same: look at identities() before asking again")
        return None

    def _helps(self, error: GaitError) -> bool:
        if not error.retryable or isinstance(error, DeadlineExceededError):
            return False
        return self._repeatable or (isinstance(error, ServerUnavailableError) and not error.reached)


def may_have_happened(error: ServerError) -> bool:
    """Whether the server may have carried out a request that failed so."""
    if isinstance(error, ServerUnavailableError):
        return error.reached
    return isinstance(error, (DeadlineExceededError, AnswerError))


def check_seconds(value: object, where: str = "timeout") -> float:
    """A usable time-out, or an OptionError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise OptionError("not a usable time-out", where=where, got=repr(value), expected="seconds > 0")
    return float(value)


def check_retries(value: object) -> int:
    """A usable number of further attempts, or an OptionError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10:
        raise OptionError("not a number of retries", where="retries", got=repr(value), expected="0 to 10")
    return value
