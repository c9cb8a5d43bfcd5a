"""What the measurements of serving share: a gallery of synthetic walkers, servers, clients, Triton's statistics."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gaitsdk import Recognizer, synthetic
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer

RESULTS = Path(__file__).parent / "results"
#: Given with every request: the shipped bundle may be calibrated for another gallery.
THRESHOLD = 1.0
#: Candidates asked for, of people who have two entries each.
TOP_K = 10
#: What Triton tells of a request at a model, in its own order.
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")

Statistics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Crowd:
    """People in a gallery file, open in this process, and probes.

    Attributes:
        folder: for what servers need.
        settings: of a server on the gallery.
        local: the in-process recognizer.
        walks: n probes `[T_i, S, S]` uint8 of people who are enrolled.
    """

    folder: Path
    settings: Settings
    local: Recognizer
    walks: list[np.ndarray]

    def server(self, options: Options | None = None, threads: int | None = None) -> TritonServer:
        """A server on the gallery, to be entered; `threads` None = as in this process."""
        settings = self.settings if threads is None else replace(self.settings, threads=threads)
        return TritonServer(render(None, Path(tempfile.mkdtemp(dir=self.folder)) / "models", options), settings)


@contextmanager
def crowd(
    people: int = 100, probes: int = 32, lengths: tuple[int, int] = (30, 30), threads: int | None = None
) -> Iterator[Crowd]:
    """Enrols `people` walkers and draws probes of `lengths` (shortest, longest) frames."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = Settings(gallery=str(folder / "people.db"), threads=threads)
        prepare_gallery(settings)
        local = stack.enter_context(Recognizer.load(gallery=settings.gallery, threads=threads))
        for identity in range(people):
            drawn = [synthetic.sequence(identity, type=kind, frames=20) for kind in ("nm-01", "nm-02")]
            local.enroll(f"person-{identity}", drawn)
        frames = np.random.default_rng(0).integers(lengths[0], lengths[1] + 1, probes)
        walks = [synthetic.sequence(i % people, type="nm-03", frames=int(n)) for i, n in enumerate(frames)]
        yield Crowd(folder, settings, local, walks)


def closed_loop(
    recognizer: Recognizer, walks: Sequence[np.ndarray], clients: int, seconds: float
) -> tuple[float, list[float]]:
    """Threads that ask as soon as they are answered: identifications per second, and the seconds that each took."""
    taken: list[list[float]] = [[] for _ in range(clients)]
    started = time.perf_counter()

    def ask(number: int) -> None:
        at = number
        while (began := time.perf_counter()) < started + seconds:
            recognizer.identify(walks[at % len(walks)], TOP_K, threshold=THRESHOLD)
            taken[number].append(time.perf_counter() - began)
            at += clients

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    every = [each for row in taken for each in row]
    return len(every) / elapsed, every


def statistics(server: TritonServer) -> Statistics:
    """Triton's counters by model."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/stats", timeout=10) as response:
        return {each["name"]: each for each in json.load(response)["model_stats"]}


def per_step(before: Statistics, after: Statistics) -> dict[str, dict[str, float]]:
    """Milliseconds of a request in each phase of each model, and its mean batch, between two readings."""
    table = {}
    for name, now in after.items():
        then = before[name]
        requests = _difference(then, now, "success", "count")
        runs = now["execution_count"] - then["execution_count"]
        if requests and runs:
            row = {phase: _difference(then, now, phase, "ns") / requests / 1e6 for phase in PHASES}
            row["total"] = _difference(then, now, "success", "ns") / requests / 1e6
            row["mean_batch"] = (now["inference_count"] - then["inference_count"]) / runs
            table[name] = {key: round(value, 3) for key, value in row.items()}
    return table


def _difference(before: Mapping[str, Any], after: Mapping[str, Any], phase: str, key: str) -> int:
    return int(after["inference_stats"][phase][key]) - int(before["inference_stats"][phase][key])


def machine() -> dict[str, Any]:
    """Where and with what something was measured."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the worst."""
    found = np.percentile(np.asarray(seconds) * 1e3, (50, 95, 99, 100))
    return dict(zip(("p50", "p95", "p99", "max"), np.round(found, 2).tolist(), strict=True))


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return path
