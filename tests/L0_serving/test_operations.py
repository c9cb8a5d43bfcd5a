"""What an operator sees of a running server: metrics, log, audit, health, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import GaitError, OptionError, ServerError, StaticSequenceError
from gaitsdk.results import Identification
from gaitsdk.runtimes.wire import EMBED, RERANK
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton import canary
from gaitsdk_export.triton.audit import ACTOR, hashed
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.decision import STAGES
from gaitsdk_export.triton.hardening import DRAIN_TIMEOUT
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.later import DELAY_S
from gaitsdk_export.triton.repository import render
from gaitsdk_export.triton.server import TritonServer
from gaitsdk_export.triton.server import _members as members

grpc = pytest.importorskip("tritonclient.grpc")

PEOPLE = [f"Ottilie Müller-{i}" for i in range(5)]
ALWAYS, NEVER = 1e3, 0.0  # thresholds


class Watched:
    """A server, two processes each of `embed` and `rerank`, with all that it records."""

    def __init__(self, server: TritonServer, log: Path, audit: Path) -> None:
        self.server, self.log, self.audit = server, log, audit

    def metrics(self) -> dict[str, float]:
        """Series with its labels -> value, ours only, once all of them have arrived."""
        time.sleep(3 * DELAY_S)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.metrics_port}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith("gaitsdk_")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def events(self) -> list[dict[str, Any]]:
        """Lines of the log, once all of them are written."""
        time.sleep(3 * DELAY_S)
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(
    installation: Installation, bundle_path: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    repository = render(bundle_path, folder / "models")
    settings = replace(settings, gallery=str(folder / "people.db"), audit=str(folder / "audit"))
    prepare_gallery(settings)
    with TritonServer(repository, settings, installation=installation, log=folder / "log") as server:
        yield Watched(server, folder / "log", folder / "audit")


@pytest.fixture(scope="module")
def client(watched: Watched) -> Iterator[Recognizer]:
    """With everybody enrolled."""
    with Recognizer.connect(watched.server.grpc_url, timeout=60) as recognizer:
        for i, name in enumerate(PEOPLE):
            recognizer.enroll(name, [walk(i, "nm-01"), walk(i, "nm-02")])
        yield recognizer


def walk(identity: int, kind: str = "nm-03") -> np.ndarray:
    return synthetic.sequence(identity, type=kind, frames=12)


def identify(client: Recognizer, identity: int, threshold: float) -> Identification:
    """With the whole gallery as candidates."""
    return client.identify(walk(identity), top_k=2 * len(PEOPLE), threshold=threshold)


def raw(server: TritonServer, model: str, inputs: dict[str, np.ndarray], **options: Any) -> Any:
    """A request as any program may send it: nothing of it is checked before it leaves."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    try:
        tensors = []
        for name, array in inputs.items():
            data_type = {"uint8": "UINT8", "object": "BYTES", "int64": "INT64"}[array.dtype.name]
            tensors.append(grpc.InferInput(name, list(array.shape), data_type))
            tensors[-1].set_data_from_numpy(array)
        return client.infer(model, tensors, **options)
    finally:
        client.close()


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What changed, ours without the histogram's buckets."""
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


def test_what_was_answered_is_counted(watched: Watched, client: Recognizer) -> None:
    asked = [(i % len(PEOPLE), ALWAYS if i % 4 else NEVER) for i in range(40)]
    before = watched.metrics()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda each: identify(client, *each), asked))
    grown = growth(before, watched.metrics())
    assert grown['gaitsdk_decisions_total{decision="known"}'] == 30
    assert grown['gaitsdk_decisions_total{decision="unknown"}'] == 10
    changed = sum(result.candidates[0].shortlist_rank != 1 for result in results)
    assert 0 < changed < 40, "the tiny bundle re-orders some"
    assert grown["gaitsdk_rerank_changes_total"] == changed
    assert grown["gaitsdk_shortlist_margin_ratio_count"] == 40
    expected = [margin(result) for result in results]
    assert grown["gaitsdk_shortlist_margin_ratio_sum"] == pytest.approx(sum(expected), abs=1e-3)
    assert min(expected) > 0
    for limit in (0.05, 0.2):
        below = grown.get(f'gaitsdk_shortlist_margin_ratio_bucket{{le="{limit}"}}', 0)
        assert below == sum(each <= limit for each in expected)
    taken = [grown[f'gaitsdk_stage_seconds_total{{stage="{stage}"}}'] for stage in STAGES]
    assert min(taken) > 0 and sum(taken) < sum(result.timings_ms["round_trip"] for result in results) / 1e3
    instances = {event["model"]: 0 for event in watched.events()}
    for event in watched.events():
        instances[event["model"]] += event["event"] == "opened"
    assert instances[RERANK] == instances[EMBED] == 2


def margin(result: Identification) -> float:
    """By definition, from the list that the client got."""
    ordered = sorted(result.candidates, key=lambda each: each.shortlist_rank)
    first = ordered[0]
    second = next(each for each in ordered if each.identity != first.identity)
    return 1 - first.shortlist_distance / second.shortlist_distance


def test_the_gallery_is_measured(watched: Watched, client: Recognizer) -> None:
    before = watched.metrics()
    assert before["gaitsdk_gallery_entries"] == client.count == 2 * len(PEOPLE)
    client.enroll("Zoë", [walk(7)])
    after = watched.metrics()
    assert after["gaitsdk_gallery_sequence"] == before["gaitsdk_gallery_sequence"] + 1
    assert after["gaitsdk_gallery_entries"] == 2 * len(PEOPLE) + 1
    client.delete("Zoë")
    grown = growth(before, watched.metrics())
    assert grown["gaitsdk_enrolled_entries_total"] == grown["gaitsdk_deleted_entries_total"] == 1
    deadline = time.monotonic() + 20  # identities are counted at most 5 % of the time
    while watched.metrics()["gaitsdk_gallery_identities"] != len(PEOPLE):
        assert client.count and time.monotonic() < deadline
        time.sleep(0.05)


def test_refusals_are_counted_and_logged(watched: Watched, client: Recognizer) -> None:
    standing = np.repeat(walk(1)[:1], 12, axis=0)[None]
    before, logged = watched.metrics(), len(watched.events())

    def refused(i: int) -> str:
        with pytest.raises(Exception, match=StaticSequenceError.__name__) as caught:
            raw(watched.server, "identify", {"silhouettes": standing}, request_id=f"standing-{i}")
        return str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(refused, range(8)))
    with pytest.raises(OptionError):
        client.identify(walk(1), top_k=10**6)
    labels = 'error="StaticSequenceError",model="embed",reason="quality"'
    grown = growth(before, watched.metrics())
    assert grown[f"gaitsdk_refused_requests_total{{{labels}}}"] == 8
    assert grown['gaitsdk_refused_requests_total{error="OptionError",model="shortlist",reason="request"}'] == 1
    events = [each for each in watched.events()[logged:] if each["event"] == "refused"]
    named = {each["request_id"] for each in events if each["error"] == "StaticSequenceError"}
    assert named == {f"standing-{i}" for i in range(8)}
    assert all(each["level"] == "warning" and each["ms"] >= 0 and each["what"] for each in events)
    lines = [each for each in watched.audited() if each.get("error") == "StaticSequenceError"]
    assert len(lines) == 8 and {(each["event"], each["outcome"]) for each in lines} == {("identify", "refused")}


def test_the_audit_tells_who_did_what(watched: Watched, client: Recognizer) -> None:
    start = len(watched.audited())
    inputs = {
        "action": np.array([b"enroll"], object),
        "identity": np.array(["Zoë".encode()], object),
        "silhouettes": walk(7),
        "lengths": np.array([12], np.int64),
    }
    raw(watched.server, "gallery", inputs, request_id="r-1", headers={ACTOR: "desk 4"})
    result = identify(client, 7, ALWAYS)
    client.delete("Zoe\u0308")  # the same name, typed otherwise
    with pytest.raises(GaitError):
        client.delete("Zoë")
    lines = watched.audited()[start:]
    told = [(each["event"], each["outcome"], each["identity"]) for each in lines if each["event"] != "identify"]
    person = hashed("Zoë")
    assert told == [
        ("enroll", "asked", person),
        ("enroll", "done", person),
        ("delete", "asked", person),
        ("delete", "done", person),
        ("delete", "asked", person),
        ("delete", "refused", person),
    ]
    enrolled, deleted = lines[1], lines[-3]
    assert (enrolled["request_id"], enrolled["actor"]) == ("r-1", "desk 4")
    assert deleted["count"] == 1 and deleted["sequence"] == enrolled["sequence"] + 1
    assert lines[-1]["error"] == "UnknownIdentityError"
    (identified,) = [each for each in lines if each["event"] == "identify"]
    first = result.candidates[0]
    assert identified["identity"] == hashed(first.identity) and identified["entries"] == [first.entry_id]
    assert identified["decision"] == "known" and identified["gallery_size"] == client.count + 1
    for line in lines:
        assert line["fingerprint"] == result.fingerprint and line["reranker"] == "cargait"
    assert os.stat(watched.audit).st_mode & 0o077 == 0, "nobody else may read it"


def test_nobody_claims_to_be_somebody_else(watched: Watched) -> None:
    action = {"action": np.array([b"count"], object)}
    body = json.dumps(
        {
            "parameters": {ACTOR: "the director"},
            "inputs": [{"name": "action", "datatype": "BYTES", "shape": [1], "data": ["count"]}],
        }
    ).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{watched.server.http_url}/v2/models/gallery/infer", body)
    assert refused.value.code == 400
    with pytest.raises(Exception, match="reserved"):
        raw(watched.server, "gallery", action, parameters={ACTOR: "the director"})


def test_what_follows_an_answer_is_written_before_the_end(
    installation: Installation, bundle_path: Path, watched: Watched, tmp_path: Path
) -> None:
    settings = replace(watched.server.settings, audit=None)
    repository, log = render(bundle_path, tmp_path / "models"), tmp_path / "log"
    try:
        with (
            TritonServer(repository, settings, installation=installation, log=log) as server,
            Recognizer.connect(server.grpc_url, timeout=60) as recognizer,
        ):
            recognizer.enroll("for the end", walk(0))
            for i in range(20):
                identify(recognizer, i % len(PEOPLE), ALWAYS)
    finally:
        with Recognizer.connect(watched.server.grpc_url, timeout=60) as recognizer:
            recognizer.delete("for the end")
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    found = [each for each in events if each["event"] == "identified" and not each.get("canary")]
    assert len(found) == len({each["request_id"] for each in found}) == 20
    times = [each["time"] for each in found]
    assert times == sorted(times) and times[0] < times[-1], "when it happened, not when it was written"


def test_log_and_audit_hold_no_names_and_no_biometric_data(watched: Watched, client: Recognizer) -> None:
    results = [identify(client, i, ALWAYS) for i in range(len(PEOPLE))]
    with pytest.raises(GaitError):
        client.delete("Nobody of this name")
    features = client.embed([walk(i) for i in range(len(PEOPLE))])
    time.sleep(3 * DELAY_S)
    log, audit = watched.log.read_text(), watched.audit.read_text()
    assert log.count('"identified"') >= len(PEOPLE), "a session that was recorded"
    for name in (*PEOPLE, "Nobody of this name", "Zoë"):
        for spelling in (name, json.dumps(name).strip('"')):
            assert spelling not in log and spelling not in audit
        assert hashed(name) not in log
    assert hashed(PEOPLE[0]) in audit
    told = {round(number, 4) for text in (log, audit) for line in text.splitlines() for number in numbers(line)}
    distances = [d for r in results for c in r.candidates for d in (c.distance, c.shortlist_distance)]
    measured = {round(float(each), 4) for each in (*features.ravel(), *distances)} - {0.0, 1.0}
    assert len(measured) > 1000 and not told & measured
    fields = {name for event in watched.events() for name in event}
    assert fields <= {
        *("time", "level", "event", "model", "ms", "request_id", "actor", "fingerprint"),
        "reranker",
        "canary",
        *("known", "unknown", "uncalibrated", "gallery_size", "gallery_sequence", "entries"),
        *("reason", "error", "what", "where", "expected"),
    }


def numbers(line: str) -> Iterator[float]:
    """The numbers of a line that is ours, whatever field or list they are in; durations apart."""
    if line.startswith("{"):
        for name, value in json.loads(line).items():
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, float) and name != "ms":
                    yield each
                elif isinstance(each, str) and name != "time":
                    yield from (float(part) for part in re.findall(r"\d+\.\d+", each))


def test_an_audit_that_was_renamed_goes_on_in_a_new_file(watched: Watched, client: Recognizer) -> None:
    old = watched.audit.with_suffix(".1")
    watched.audit.rename(old)
    size = old.stat().st_size
    identify(client, 0, ALWAYS)
    assert [each["event"] for each in watched.audited()] == ["identify"]
    assert old.stat().st_size == size


def test_nothing_happens_that_cannot_be_audited(watched: Watched, client: Recognizer) -> None:
    aside = watched.audit.with_suffix(".aside")
    watched.audit.rename(aside)
    watched.audit.symlink_to("/dev/full")  # takes no byte, like a full disk
    before = client.count
    try:
        for attempt in (
            lambda: client.enroll("Zoë", [walk(7)]),
            lambda: client.delete(PEOPLE[0]),
            lambda: identify(client, 0, ALWAYS),
        ):
            with pytest.raises(ServerError) as refused:
                attempt()
            named = re.fullmatch("request ([0-9a-f]{16})", str(refused.value.got))
            assert named and named[1] in [each.get("request_id") for each in watched.events()], "the log has the reason"
        assert client.count == before and sorted(client.identities()) == sorted(PEOPLE)
    finally:
        watched.audit.unlink()
        aside.rename(watched.audit)
    assert identify(client, 0, ALWAYS).known
    reasons = [each for each in watched.events() if each["level"] == "error" and each["event"] == "refused"]
    assert {each["model"] for each in reasons} == {"gallery", "shortlist"}
    assert all("audit" in each["what"] and "No space" in each["got"] for each in reasons)


def test_the_canary_sings(watched: Watched, client: Recognizer) -> None:
    before, start = watched.metrics(), len(watched.audited())
    for url in (watched.server.grpc_url, watched.server.http_url):
        state = canary.check(url, timeout=30)
        assert state["entries"] == client.count and state["ms"] > 0
    command = [sys.executable, "-m", "gaitsdk_export.triton.canary", "--timeout", "30", watched.server.grpc_url]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and json.loads(found.stdout)["entries"] == client.count
    assert not growth(before, watched.metrics()), "a probe is no walk of anybody"
    lines = watched.audited()[start:]
    assert [(each["event"], each["canary"], each["decision"]) for each in lines] == 3 * [("identify", True, "unknown")]


def test_the_canary_sees_that_the_gallery_was_replaced(watched: Watched, client: Recognizer) -> None:
    path = Path(str(watched.server.settings.gallery))
    aside = path.with_suffix(".aside")
    path.rename(aside)
    try:
        with pytest.raises(ServerError, match="the canary failed"):
            canary.check(watched.server.grpc_url, timeout=30)
        shutil.copy(aside, path)
        with pytest.raises(ServerError, match="was replaced"):
            canary.check(watched.server.grpc_url, timeout=30)
    finally:
        path.unlink(missing_ok=True)
        aside.rename(path)
    assert canary.check(watched.server.grpc_url, timeout=30)["entries"] == client.count


def test_a_canary_without_a_server() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for scheme in ("grpc", "http"):
            url, started = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
            with pytest.raises(ServerError, match="the canary failed"):
                canary.check(url, timeout=0.5)
            assert time.monotonic() - started < 2
    assert canary.main([url, "--timeout", "0.5"]) == 1
    assert canary.main(["nowhere", "--timeout", "-1"]) == 1


@pytest.mark.parametrize("held", [False, True], ids=["all hang up", "one holds the line"])
def test_requests_in_flight_are_answered_when_it_stops(
    installation: Installation, repository: Path, settings: Settings, held: bool
) -> None:
    long = [np.roll(np.resize(walk(1), (150, 64, 64)), i, axis=0) for i in range(8)]
    answers: dict[str, tuple[np.ndarray, float]] = {}
    with TritonServer(repository, settings, installation=installation) as server:
        urls = (server.grpc_url, server.http_url)
        clients = {url: Recognizer.connect(url, timeout=30, retries=0) for url in urls}
        expected = clients[urls[0]].embed(long)
        started = time.monotonic()
        clients[urls[0]].embed(long)
        alone = time.monotonic() - started

        def ask(url: str) -> None:
            answers[url] = clients[url].embed(long), time.monotonic()
            if not held:
                clients[url].close()

        threads = [threading.Thread(target=ask, args=(url,)) for url in urls]
        for thread in threads:
            thread.start()
        time.sleep(0.4 * alone)  # both have arrived, and at least one of them is not done
        started = time.monotonic()
        code = server.stop()
        took = time.monotonic() - started
        for thread in threads:
            thread.join(10)
    assert set(answers) == set(urls), "both were answered"
    assert max(when for _, when in answers.values()) > started, "one of them was in flight"
    for answer, _ in answers.values():
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    # Its time is up where somebody holds a connection, which this Triton waits for whatever is on it, and on a machine
    # so busy that the models need as long to end.
    assert code == 0 if took < DRAIN_TIMEOUT else took < DRAIN_TIMEOUT + 5


def test_a_dead_model_is_ill_though_ready(watched: Watched) -> None:
    """The last one: it kills the server of the others."""
    server = watched.server
    victim = next(pid for pid in members(server.pid) if b"rerank_0_0" in Path(f"/proc/{pid}/cmdline").read_bytes())
    twin = next(pid for pid in members(server.pid) if b"rerank_0_1" in Path(f"/proc/{pid}/cmdline").read_bytes())
    for pid in (victim, twin):
        os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ServerError, match="the canary failed"):
        canary.check(server.grpc_url, timeout=5)
    assert time.monotonic() - started < 7
    assert server._get("/v2/health/ready") is not None, "Triton itself does not notice"
    os.kill(server.pid, signal.SIGKILL)  # a server with a dead model takes long to stop by itself
