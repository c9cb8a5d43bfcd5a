"""What the models log and count, without a server."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gaitsdk.errors import (
    BundleError,
    EmptyGalleryError,
    GalleryCorruptError,
    GalleryLockedError,
    OptionError,
    ServerError,
    StaticSequenceError,
    UnknownIdentityError,
)
from gaitsdk_export.triton import later as later_module
from gaitsdk_export.triton.audit import Audit
from gaitsdk_export.triton.backend import Model, Settings, asked_by, outcome_of, reason_of
from gaitsdk_export.triton.later import DELAY_S, MOST, Later
from gaitsdk_export.triton.logs import EventLog, error_fields
from gaitsdk_export.triton.metrics import FAMILIES, Metrics


def written(log_format: str, **fields: Any) -> str:
    reader, writer = os.pipe()
    EventLog("embed", log_format, writer).write("refused", "warning", **fields)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_json_lines() -> None:
    text = written("json", request_id="a\n\x1b[31m" + "x" * 5000, ms=1.5, actor=None)
    assert text.endswith("\n") and text.count("\n") == 1 and len(text) < 4096
    line = json.loads(text)
    assert line.pop("time").endswith("Z") and len(line.pop("request_id")) == 256
    assert line == {"level": "warning", "event": "refused", "model": "embed", "ms": 1.5}


def test_text_lines() -> None:
    text = written("text", request_id="a\nb", known=2)
    assert text.split(" ", 1)[1] == 'warning embed refused request_id="a\\nb" known=2\n'


def test_a_log_that_is_closed_stops_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    EventLog("embed", descriptor=writer).write("opened")


def test_errors_are_told_without_what_they_got() -> None:
    secret = "Ottilie"
    for kind in (UnknownIdentityError, OptionError, GalleryCorruptError):
        assert secret not in json.dumps(error_fields(kind("not right", where="identity", got=secret, fix="look")))
    assert error_fields(BundleError("damaged", got="checksum 1", where="a file"))["got"] == "checksum 1"
    try:
        {}[secret]
    except KeyError as error:
        told = error_fields(error)
    assert told["error"] == "KeyError" and secret not in json.dumps(told)
    assert "test_errors_are_told" in told["traceback"][-1]


@pytest.mark.parametrize(
    ("error", "reason", "outcome"),
    [
        (StaticSequenceError("x"), "quality", "refused"),
        (OptionError("x"), "request", "refused"),
        (EmptyGalleryError("x"), "request", "refused"),
        (UnknownIdentityError("x"), "request", "refused"),
        (GalleryLockedError("x"), "busy", "refused"),
        (GalleryCorruptError("x"), "server", "failed"),
        (ServerError("x"), "server", "failed"),
        (ZeroDivisionError("x"), "server", "failed"),
    ],
)
def test_reasons(error: Exception, reason: str, outcome: str) -> None:
    assert (reason_of(error), outcome_of(error)) == (reason, outcome)


def test_who_asks() -> None:
    def asked(identity: str, parameters: str) -> dict[str, str | None]:
        return asked_by(SimpleNamespace(request_id=lambda: identity, parameters=lambda: parameters))

    assert asked("r", '{"Triton_Actor": "desk", "k": 3}') == {"request_id": "r", "actor": "desk"}
    assert asked("", "") == {"request_id": None, "actor": None}


class Backend:
    """Counts like the server, or refuses everything."""

    def __init__(self, broken: bool = False) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.calls, self.sent, self.broken, backend = 0, 0, broken, self
        self.held = threading.Lock()

        class MetricFamily:
            COUNTER, GAUGE, HISTOGRAM = range(3)

            def __init__(self, name: str, description: str, kind: int) -> None:
                backend.calls += 1
                if backend.broken:
                    raise RuntimeError("no metrics here")
                self.name = name

            def Metric(self, labels: dict[str, str], buckets: object = None) -> Any:
                key = (self.name, *labels.values())

                def put(value: float) -> None:
                    with backend.held:
                        backend.values[key] = backend.values.get(key, 0) + value
                        backend.sent += 1

                return SimpleNamespace(increment=put, set=put, observe=put)

        self.MetricFamily = MetricFamily


def counting(backend: Backend) -> tuple[Metrics, Later]:
    later = Later()
    return Metrics(backend, later), later


def test_one_series_per_labels() -> None:
    backend = Backend()
    metrics, later = counting(backend)
    for decision, count in (("known", 2), ("unknown", 1), ("known", 1)):
        metrics.add("gaitsdk_decisions_total", count, decision=decision)
    metrics.observe("gaitsdk_shortlist_margin_ratio", 0.25)
    metrics.observe("gaitsdk_shortlist_margin_ratio", 0.5)
    metrics.set("gaitsdk_gallery_entries", 8)
    metrics.set("gaitsdk_gallery_entries", 9)
    later.close()
    metrics.close()
    assert backend.values == {
        ("gaitsdk_decisions_total", "known"): 3,
        ("gaitsdk_decisions_total", "unknown"): 1,
        ("gaitsdk_shortlist_margin_ratio",): 0.75,
        ("gaitsdk_gallery_entries",): 9,
    }
    assert backend.calls == 3, "a family is made once"
    assert backend.sent == 5, "values of a counter or gauge that come together are one message"


def test_nobody_waits_for_a_metric() -> None:
    backend = Backend()
    metrics, later = counting(backend)
    with backend.held:  # the server takes nothing
        for _ in range(100):
            metrics.add("gaitsdk_rerank_changes_total")
            metrics.observe("gaitsdk_shortlist_margin_ratio", 0.5)
        assert not backend.values
    deadline = time.monotonic() + 10
    while len(backend.values) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    later.close()
    metrics.close()
    assert backend.values == {("gaitsdk_rerank_changes_total",): 100, ("gaitsdk_shortlist_margin_ratio",): 50}


def test_later_is_in_order_and_complete() -> None:
    done: list[int] = []
    later, gate = Later(), threading.Event()

    def work(number: int) -> None:
        gate.wait(10)
        if number == 3:
            later.do(lambda: done.append(-1))  # what that leads to, too
            raise RuntimeError("no reason for the others")
        done.append(number)

    for number in range(6):
        later.do(lambda number=number: work(number))
    assert not done, "nobody waits for it"
    gate.set()
    later.close()
    assert done == [0, 1, 2, 4, 5, -1]
    later.do(lambda: done.append(6))
    later.close()
    assert done[-1] == 6


def test_later_keeps_so_much_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    later, gate = Later(), threading.Event()
    later.do(lambda: gate.wait(20))
    time.sleep(3 * DELAY_S)  # it is stuck there
    for number in range(MOST + 5):
        later.do(lambda number=number: done.append(number))
    gate.set()
    later.close()
    assert done == list(range(5, MOST + 5)), "the newest"
    assert "5 pieces of work" in caplog.text


def test_what_was_held_up_is_told_whole() -> None:
    backend, told = Backend(), []
    metrics, later = counting(backend)
    gate = threading.Event()

    def tell(number: int) -> None:
        gate.wait(20)  # nobody reads the log
        told.append(number)
        metrics.add("gaitsdk_decisions_total", decision="known")
        metrics.observe("gaitsdk_shortlist_margin_ratio", 0.5)

    for number in range(MOST - 1):
        later.do(lambda number=number: tell(number))
    gate.set()
    later.close()
    metrics.close()
    assert told == list(range(MOST - 1))
    assert backend.values[("gaitsdk_decisions_total", "known")] == MOST - 1


def test_the_end_does_not_wait_for_what_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_module, "ENDING_S", 0.2)
    later, gate = Later(), threading.Event()
    later.do(lambda: gate.wait(20))
    started = time.monotonic()
    later.close()
    assert time.monotonic() - started < 5
    gate.set()


def test_without_a_thread_it_is_done_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    later = Later()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        later.do(lambda: done.append(1))
    later.close()
    assert done == [1]


def test_later_goes_on_after_a_pause() -> None:
    done: list[float] = []
    later = Later()
    for _ in range(3):
        asked = time.monotonic()
        later.do(lambda: done.append(time.monotonic()))
        deadline, count = asked + 10, len(done)
        while len(done) == count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert done[-1] >= asked + 0.9 * DELAY_S
        time.sleep(3 * DELAY_S)
    later.close()
    assert len(done) == 3


def test_declared_counters_appear_with_the_first_value() -> None:
    backend = Backend()
    metrics, later = counting(backend)
    metrics.declare("gaitsdk_decisions_total", decision="known")
    metrics.declare("gaitsdk_decisions_total", decision="unknown")
    assert not backend.values, "the server is not asked before there is a request"
    metrics.add("gaitsdk_decisions_total", decision="known")
    metrics.add("gaitsdk_decisions_total", decision="known")
    later.close()
    metrics.close()
    assert backend.values == {("gaitsdk_decisions_total", "known"): 2, ("gaitsdk_decisions_total", "unknown"): 0}


def test_a_server_without_metrics_costs_no_answer() -> None:
    backend = Backend(broken=True)
    metrics, later = counting(backend)
    for _ in range(3):
        metrics.add("gaitsdk_decisions_total", decision="known")
        metrics.set("gaitsdk_gallery_entries", 3)
        metrics.add("no such family")
        metrics.send()
    later.close()
    assert backend.calls == 2, "each is tried once"


class Changing(Model):
    """A model that can do nothing but change a gallery."""

    def __init__(self, path: Path, fails_at: int) -> None:
        self.name, self.reranker, self.bundle = "gallery", "none", SimpleNamespace(fingerprint="f")  # type: ignore[assignment]
        self.backend, self.lines = Backend(), 0
        (self.metrics, self.later), self.events = counting(self.backend), EventLog("gallery", descriptor=-1)
        self.audit, self.fails_at = Audit(path), fails_at
        append = self.audit._append

        def failing(text: bytes) -> None:
            self.lines += 1
            if self.lines == self.fails_at:
                raise OSError(28, "No space left on device")
            append(text)

        self.audit._append = failing  # type: ignore[method-assign]

    def open(self) -> None: ...

    def execute(self, requests: Any) -> Any: ...

    def enroll(self) -> list[str]:
        """What happened."""
        happened = []
        request = SimpleNamespace(request_id=lambda: "r", parameters=lambda: "")
        with self.changing("enroll", request, "Zoë") as done:
            happened.append("changed")
            done["entries"] = [1]
        return happened


def test_no_change_without_its_intent_and_no_denial_of_a_change(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with pytest.raises(ServerError, match="without it nothing is done"):
        Changing(path, fails_at=1).enroll()
    assert path.read_text() == ""
    model = Changing(path, fails_at=2)
    assert model.enroll() == ["changed"], "an error would deny what is done"
    assert [json.loads(line)["outcome"] for line in path.read_text().splitlines()] == ["asked"]
    model.later.close()
    model.metrics.close()
    assert model.backend.values == {("gaitsdk_audit_failures_total", "gallery"): 1}
    assert Changing(path, fails_at=0).enroll() == ["changed"]
    assert [json.loads(line)["outcome"] for line in path.read_text().splitlines()] == ["asked", "asked", "done"]


def test_names_follow_prometheus() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("gaitsdk_") and name.endswith("_total") == (family.kind == "counter")
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets)) and np.isfinite(family.buckets).all()


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving_operations.md").read_text()
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    assert not [name for name in FAMILIES if name not in table]
    assert set(re.findall(r"gaitsdk_[a-z_]+_(?:total|ratio|entries|identities|sequence)\b", page)) == set(FAMILIES)


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Settings(gallery="people.db", threads=2, log_format="text", audit="audit", audit_identities="plain")
    for name, value in chosen.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == chosen
    monkeypatch.setenv("GAITSDK_AUDIT", "")
    monkeypatch.delenv("GAITSDK_LOG_FORMAT")
    assert Settings.from_environment().audit is None and Settings.from_environment().log_format == "json"
    for name in ("GAITSDK_LOG_FORMAT", "GAITSDK_AUDIT_IDENTITIES", "GAITSDK_THREADS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "other")
            with pytest.raises(OptionError):
                Settings.from_environment()
