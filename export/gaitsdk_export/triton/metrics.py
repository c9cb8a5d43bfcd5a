"""What the models count for Prometheus, beside what Triton counts itself (times per step, queues, failures).

The server holds the numbers, so those of several processes of a model add up. They live until the server stops.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


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
    """The metrics of one process of a model. No method raises: counting must not cost an answer.

    Args:
        backend: the module `triton_python_backend_utils`.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._families: dict[str, Any] = {}
        self._declared: list[tuple[str, dict[str, str]]] = []
        #: One per name and labels; None where the server takes none (it may run without metrics).
        self._series: dict[tuple[str, ...], Any] = {}

    def declare(self, name: str, **labels: str) -> None:
        """A counter that is to appear, at zero, with the first value of any: the server is not asked before it runs."""
        self._declared.append((name, labels))

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Raises a counter."""
        self._call("increment", name, value, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._call("set", name, value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Puts a value into a histogram."""
        self._call("observe", name, value, labels)

    def close(self) -> None:
        """Lets go of everything: the backend's process would crash over what is left at its end."""
        self._series.clear()
        self._families.clear()

    def _call(self, method: str, name: str, value: float, labels: dict[str, str]) -> None:
        while self._declared:
            declared, its_labels = self._declared.pop()
            self._call("increment", declared, 0, its_labels)
        key = (name, *labels.values())
        try:
            if key not in self._series:
                self._series[key] = None
                self._series[key] = self._create(name, labels)
            if (series := self._series[key]) is not None:
                getattr(series, method)(value)
        except Exception as error:  # noqa: BLE001 - whatever the server has against it, the request goes on
            self._series[key] = None
            logger.warning("%s is not counted: %s", name, error)

    def _create(self, name: str, labels: dict[str, str]) -> Any:
        family = FAMILIES[name]
        if name not in self._families:
            kind = getattr(self._backend.MetricFamily, family.kind.upper())
            self._families[name] = self._backend.MetricFamily(name=name, description=family.description, kind=kind)
        options = {"buckets": list(family.buckets)} if family.buckets else {}
        return self._families[name].Metric(labels=labels, **options)
