"""Load on a server: many clients, half and twice its capacity, a soak. All answers are compared with this process's.

    python benchmarks/load.py [--clients 1 4 16 64 256] [--seconds 10]
    python benchmarks/load.py --soak 3600

First clients that ask as soon as they are answered: the most that any number of them gets is the capacity. Then
requests that come at random times (Poisson), whether or not earlier ones were answered, at half and at twice the
capacity; their latency counts from the time at which they were due, so that a server that stands still is seen to stand
still. Nothing is sent twice: a refusal counts as one. --soak runs at half capacity alone and watches the server's
processes.
Writes benchmarks/results/load.json (load_soak.json). The clients run on the server's own cores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from serving_world import THRESHOLD, TOP_K, crowd, machine, milliseconds, per_step, save, statistics

from gaitsdk import Recognizer
from gaitsdk.errors import GaitError
from gaitsdk.pipeline import Answers
from gaitsdk.results import Identification
from gaitsdk.runtimes.triton import AsyncRemoteEngine
from gaitsdk_export.triton.repository import Options
from gaitsdk_export.triton.server import TritonServer
from gaitsdk_export.triton.server import _members as members

CLIENTS, LENGTHS = (1, 4, 16, 64, 256), (20, 40)
#: Seconds that a request may take.
PATIENCE = 30.0
#: Largest difference of a distance from the in-process one.
TOLERANCE = 1e-4
console = Console(width=110)


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        latencies: seconds of those that were answered rightly.
        wrong: answers that are not those of this process.
        errors: how many were refused or failed, by class of error.
    """

    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def to_dict(self, elapsed: float) -> dict[str, Any]:
        figures = {"per_second": round(len(self.latencies) / elapsed, 1), "answered": len(self.latencies)}
        latencies = milliseconds(self.latencies) if self.latencies else {}
        return {**figures, "wrong": self.wrong, "errors": dict(self.errors), "milliseconds": latencies}


class Questions:
    """Probes with the answers of this process. They are normalised already, so that clients, who share the machine with
    the server, cost little."""

    def __init__(self, recognizer: Recognizer, walks: Sequence[np.ndarray]) -> None:
        self.walks = walks
        self._expected = [recognizer.identify(walk, TOP_K, threshold=THRESHOLD) for walk in walks]

    async def ask(self, engine: AsyncRemoteEngine, number: int, due: float, outcome: Outcome) -> bool:
        """Sends a probe, and books what became of it; True where it was answered."""
        at = number % len(self.walks)
        try:
            answers = await engine.identify([self.walks[at]], TOP_K, engine.description.k, THRESHOLD)
        except GaitError as error:
            outcome.errors[type(error).__name__] += 1
            return False
        outcome.latencies.append(time.perf_counter() - due)
        outcome.wrong += not same(self._expected[at], answers)
        return True


def same(expected: Identification, answers: Answers) -> bool:
    """The same entries in the same order, with the same identities, distances and decision."""
    entries = [(each.entry_id, each.identity) for each in expected.candidates]
    if entries != list(zip(answers.entry_ids[0].tolist(), answers.identities[0], strict=True)):
        return False
    apart = np.abs(answers.distances[0] - [each.distance for each in expected.candidates])
    return float(apart.max()) <= TOLERANCE and answers.decisions == [expected.decision]


@asynccontextmanager
async def connected(url: str, clients: int) -> AsyncIterator[list[AsyncRemoteEngine]]:
    """Clients with a connection each, which send nothing twice."""
    engines: list[AsyncRemoteEngine] = []
    try:
        for _ in range(clients):
            engines.append(await AsyncRemoteEngine.open(url, timeout=PATIENCE, retries=0))
        yield engines
    finally:
        for engine in engines:
            await engine.close()


async def closed_loop(url: str, questions: Questions, clients: int, seconds: float) -> dict[str, Any]:
    """Every client asks as soon as it is answered; one that was refused waits a little, at random."""
    outcome, rng = Outcome(), np.random.default_rng(clients)

    async def client(number: int, engine: AsyncRemoteEngine, until: float) -> None:
        while (now := time.perf_counter()) < until:
            if not await questions.ask(engine, number, now, outcome):
                await asyncio.sleep(float(rng.uniform(0.05, 0.5)))
            number += clients

    async with connected(url, clients) as engines:
        started = time.perf_counter()
        await asyncio.gather(*(client(i, each, started + seconds) for i, each in enumerate(engines)))
        return {"clients": clients, **outcome.to_dict(time.perf_counter() - started)}


def arrivals(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """The times, from 0, of a Poisson process."""
    rng, at = np.random.default_rng(seed), 0.0
    while (at := at + float(rng.exponential(1 / rate))) < seconds:
        yield at


async def open_loop(url: str, questions: Questions, rate: float, seconds: float, clients: int = 16) -> dict[str, Any]:
    """Requests at random times, `rate` per second, over the connections of several clients in turn."""
    outcome, late = Outcome(), 0.0
    tasks: set[asyncio.Task[bool]] = set()
    async with connected(url, clients) as engines:
        started = time.perf_counter()
        for number, at in enumerate(arrivals(rate, seconds)):
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            late = max(late, time.perf_counter() - started - at)
            asked = questions.ask(engines[number % clients], number, started + at, outcome)
            tasks.add(task := asyncio.create_task(asked))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        figures = outcome.to_dict(time.perf_counter() - started)
    return {"asked_per_second": round(rate, 1), "generator_late_ms": round(late * 1e3, 1), **figures}


def overload(url: str, questions: Questions, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """Clients in closed loops, then half and twice the capacity in open ones."""
    rows = [asyncio.run(closed_loop(url, questions, each, seconds)) for each in clients]
    capacity = max(row["per_second"] for row in rows)
    half = asyncio.run(open_loop(url, questions, capacity / 2, seconds))
    twice = asyncio.run(open_loop(url, questions, capacity * 2, seconds))
    ratio = twice["milliseconds"]["p99"] / half["milliseconds"]["p99"]
    return {"capacity": capacity, "clients": rows, "half": half, "twice": twice, "p99_ratio": round(ratio, 2)}


def usage(server: TritonServer, processes: Sequence[int]) -> dict[str, float]:
    """Resident megabytes and open files of the server's processes together, and megabytes of its shared memory."""
    folders = [Path("/proc") / str(each) for each in processes]
    pages = sum(int((folder / "statm").read_text().split()[1]) for folder in folders)
    shared = sum(each.stat().st_blocks * 512 for each in Path("/dev/shm").glob(f"{server._shared_memory}*"))
    return {
        "resident_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": sum(len(os.listdir(folder / "fd")) for folder in folders),
        "shared_mb": shared / 2**20,
    }


def soak(server: TritonServer, questions: Questions, capacity: float, seconds: float) -> dict[str, Any]:
    """Half the capacity for `seconds`; what the server holds every few seconds, and by how much that grows in an hour.
    The first tenth is left out: it fills caches."""
    samples: list[dict[str, float]] = []
    times: list[float] = []

    async def watch() -> None:
        while True:
            times.append(time.perf_counter())
            samples.append(usage(server, members(server.pid)))
            await asyncio.sleep(max(1.0, seconds / 200))

    async def both() -> dict[str, Any]:
        watching = asyncio.create_task(watch())
        try:
            return await open_loop(server.grpc_url, questions, capacity / 2, seconds)
        finally:
            watching.cancel()

    figures = asyncio.run(both())
    first = len(times) // 10
    hours = (np.asarray(times[first:]) - times[first]) / 3600
    series = {name: np.asarray([each[name] for each in samples[first:]]) for name in samples[0]}
    return {
        "seconds": seconds,
        "load": figures,
        "at_first": {name: round(float(row[0]), 1) for name, row in series.items()},
        "at_last": {name: round(float(row[-1]), 1) for name, row in series.items()},
        "growth_per_hour": {name: round(float(np.polyfit(hours, row, 1)[0]), 2) for name, row in series.items()},
    }


def show(figures: dict[str, Any]) -> None:
    table = Table("load", "answered/s", "p50 ms", "p99 ms", "refused", "wrong", title=f"{figures['capacity']}/s")
    rows = [(f"{row['clients']} clients", row) for row in figures["clients"]]
    rows += [(f"{name} the capacity", figures[name]) for name in ("half", "twice") if name in figures]
    for name, row in rows:
        times = row["milliseconds"]
        cells = (f"{row['per_second']}", f"{times.get('p50')}", f"{times.get('p99')}", f"{sum(row['errors'].values())}")
        table.add_row(name, *cells, str(row["wrong"]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--soak", type=float, help="seconds at half capacity, instead of all else")
    parser.add_argument("--max-batch", type=int, default=Options().max_batch)
    parser.add_argument("--max-queue", type=int, default=Options().max_queue)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--instances", type=int, default=Options().instances)
    asked = parser.parse_args()
    options = Options(max_batch=asked.max_batch, max_queue=asked.max_queue, instances=asked.instances)
    with crowd(lengths=LENGTHS, threads=asked.threads) as people, people.server(options) as server:
        questions = Questions(people.local, people.walks)
        before = statistics(server)
        asyncio.run(closed_loop(server.grpc_url, questions, 4, 1.0))  # warms up
        if asked.soak:
            rows = [asyncio.run(closed_loop(server.grpc_url, questions, each, asked.seconds)) for each in (4, 16)]
            capacity = max(row["per_second"] for row in rows)
            figures = {"capacity": capacity, **soak(server, questions, capacity, asked.soak)}
            console.print(figures)
        else:
            figures = overload(server.grpc_url, questions, asked.clients, asked.seconds)
            show(figures)
        steps = per_step(before, statistics(server))
    figures = {**machine(), **vars(asked), **figures, "steps": steps}
    console.print(save("load_soak" if asked.soak else "load", figures))


if __name__ == "__main__":
    main()
