"""What an answer does not wait for: a thread of a model's process writes and counts it after the answer has gone.

A request that wakes the thread would wait for that, so the thread looks by the clock while there is work.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

#: Seconds by which the work may lag behind.
DELAY_S = 0.1
#: Pieces of work that may wait, where it cannot be done (nobody reads the log's pipe, for example).
MOST = 10_000
#: Seconds that the end waits for work that cannot be done.
ENDING_S = 2.0


class Later:
    """Does what it is given, in order, `DELAY_S` later or when it is closed. What fails is logged and left; where more
    than `MOST` wait, so are the oldest, and the log of the process says how many."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque(maxlen=MOST)
        self._after: list[Callable[[], bool]] = []
        self._lock, self._wake, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._dropped = 0

    def after(self, work: Callable[[], bool]) -> None:
        """Has this done at the end of every round, of which `wake` makes one, too; it tells whether it did anything."""
        self._after.append(work)

    def do(self, work: Callable[[], object]) -> None:
        """Takes work; never waits, never raises."""
        self._dropped += len(self._waiting) == MOST
        self._waiting.append(work)
        self.wake()

    def wake(self) -> None:
        """Has a round made; never waits, never raises."""
        if self._thread is None:
            with self._lock, suppress(RuntimeError):  # no thread to be had: the next request tries again
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="later", daemon=True)
                    thread.start()
                    self._thread = thread
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Does what waits, and ends the thread. What it is stuck in is left, and what waits behind that."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(ENDING_S)
            if self._thread.is_alive():
                return
        self._round()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait()
            self._closed.wait(DELAY_S)
            if not self._round():  # else it goes on by the clock
                self._wake.clear()
                if self._waiting or self._closed.is_set():  # since then
                    self._wake.set()

    def _round(self) -> bool:
        """Does what waits; whether there was anything."""
        done = False
        while self._waiting:
            done = True
            self._try(self._waiting.popleft())
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            logger.warning("%d pieces of work that followed answers were dropped: more than %d waited", dropped, MOST)
        return any([self._try(each) for each in self._after]) or done

    def _try(self, work: Callable[[], object]) -> object:
        try:
            return work()
        except Exception:
            logger.exception("something that followed an answer was not done")
            return None
