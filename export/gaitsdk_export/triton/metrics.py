"""What the models count for Prometheus, beside what Triton counts itself (times per step, queues, failures).

The server holds the numbers, so those of several processes of a model add up. They live until the server stops.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, NamedTuple

from gaitsdk_export.triton.later import Later

logger = logging.getLogger(__name__)

#: Name of a metric and its labels.
_Series = tuple[Any, ...]


class Family(NamedTuple):
    """A metric: "counter", "gauge" or "histogram"; the upper bounds of a histogram's buckets, without infinity."""

    kind: str
    description: str
    buckets: tuple[float, ...] = ()


FAMILIES = {
    "gaitsdk_decisions_total": Family("counter", "Walks identified, by decision: known, unknown or uncalibrated."),
    "gaitsdk_rerank_changes_total": Family("counter", "Walks whose first candidate is not the shortlist's first."),
    "gaitsdk_shortlist_margin_ratio": Family(
        "histogram",
        "How much nearer the shortlist's first identity is than its second: 1 - first / second distance.",
        (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7),
    ),
    "gaitsdk_stage_seconds_total": Family(
        "counter", "Seconds that `shortlist` spent for identifications, by stage: search or rerank."
    ),
    "gaitsdk_refused_requests_total": Family(
        "counter", "Requests that a model refused, by model, error and reason: quality, request, busy or server."
    ),
    "gaitsdk_enrolled_entries_total": Family("counter", "Entries enrolled through this server."),
    "gaitsdk_deleted_entries_total": Family("counter", "Entries deleted through this server."),
    "gaitsdk_gallery_entries": Family("gauge", "Entries in the gallery."),
    "gaitsdk_gallery_identities": Family("gauge", "Identities in the gallery."),
    "gaitsdk_gallery_sequence": Family("gauge", "Number of the gallery's last commit."),
    "gaitsdk_audit_failures_total": Family("counter", "Outcomes that the audit file did not take, by model."),
}


class Metrics:
    """The metrics of one process of a model. No method raises: counting must not cost an answer, nor keep it waiting.
    Each number is a message to the server, so they are sent later, and what can be added up added up.

    Args:
        backend: the module `triton_python_backend_utils`.
        later: who sends them.
    """

    def __init__(self, backend: Any, later: Later) -> None:
        self._backend, self._later = backend, later
        self._families: dict[str, Any] = {}
        #: One per name and labels; None where the server takes none (it may run without metrics).
        self._series: dict[_Series, Any] = {}
        self._waiting: dict[tuple[str, _Series], list[float]] = {}
        self._lock = threading.Lock()
        later.after(self.send)

    def declare(self, name: str, **labels: str) -> None:
        """A counter that is to appear, at zero, with the first value of any: the server is not asked before it runs."""
        self._waiting[("increment", (name, *labels.items()))] = [0]

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Raises a counter."""
        self._put("increment", name, value, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._put("set", name, value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Puts a value into a histogram."""
        self._put("observe", name, value, labels)

    def close(self) -> None:
        """Sends what waits and lets go of everything: the backend's process crashes over what is left at its end."""
        self.send()
        self._series.clear()
        self._families.clear()

    def send(self) -> bool:
        """Sends what waits; whether anything did."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for (method, series), values in waiting.items():
            for value in _together(method, values):
                self._send(method, series, value)
        return bool(waiting)

    def _put(self, method: str, name: str, value: float, labels: dict[str, str]) -> None:
        with self._lock:
            self._waiting.setdefault((method, (name, *labels.items())), []).append(value)
        self._later.wake()

    def _send(self, method: str, series: _Series, value: float) -> None:
        try:
            if series not in self._series:
                self._series[series] = None
                self._series[series] = self._create(series[0], dict(series[1:]))
            if (there := self._series[series]) is not None:
                getattr(there, method)(value)
        except Exception as error:  # noqa: BLE001 - whatever the server has against it, the others are sent
            self._series[series] = None
            logger.warning("%s is not counted: %s", series[0], error)

    def _create(self, name: str, labels: dict[str, str]) -> Any:
        family = FAMILIES[name]
        if name not in self._families:
            kind = getattr(self._backend.MetricFamily, family.kind.upper())
            self._families[name] = self._backend.MetricFamily(name=name, description=family.description, kind=kind)
        options = {"buckets": list(family.buckets)} if family.buckets else {}
        return self._families[name].Metric(labels=labels, **options)


def _together(method: str, values: list[float]) -> list[float]:
    return {"increment": [sum(values)], "set": values[-1:]}.get(method, values)
