"""What an answer does not wait for: a thread of a model's process writes and counts it after the answer has gone.

A request that wakes the thread would wait for that, so the thread looks by the clock while there is work.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds by which the work may lag behind.
DELAY_S = 0.1
#: Pieces of work that may wait, where it cannot be done (nobody reads the log's pipe, for example).
MOST = 10_000


class Later:
    """Does what it is given, in order, `DELAY_S` later or when it is closed. What fails is logged and left; where more
    than `MOST` wait, so are the oldest."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque(maxlen=MOST)
        self._lock, self._wake, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], object]) -> None:
        """Takes work; never waits, never raises."""
        self._waiting.append(work)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="later", daemon=True)
                    self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Does what waits, and ends the thread."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._work()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait()
            self._closed.wait(DELAY_S)
            if not self._work():  # else it goes on by the clock
                self._wake.clear()
                if self._waiting or self._closed.is_set():  # since then
                    self._wake.set()

    def _work(self) -> bool:
        """Does what waits; whether there was anything."""
        done = False
        while self._waiting:
            done = True
            try:
                self._waiting.popleft()()
            except Exception:
                logger.exception("something that followed an answer was not done")
        return done
