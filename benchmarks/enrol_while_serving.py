"""What somebody who identifies notices of enrolments: latencies with a gallery of 10,000 entries, quiet and while 100
entries a second come in.

    python benchmarks/enrol_while_serving.py [--entries 10000] [--rate 100] [--seconds 5] [--rounds 3]

One client asks over gRPC as soon as it is answered. In turns, block by block: nobody enrols; another process adds
feature maps to the gallery's file, `rate` commits a second; another process enrols walks of 20 frames through the
server, one after the other and at most `rate` a second (each is embedded: the CPU sets the limit). After each block
what it enrolled is deleted again. Writes benchmarks/results/enrol_while_serving.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from serving_world import THRESHOLD, Crowd, crowd, machine, milliseconds, per_step, save, statistics

from gaitsdk import Gallery, Recognizer, synthetic
from gaitsdk_export.triton.server import TritonServer

console = Console()
FRAMES, NAME = 20, "newcomer"
QUIET, FILE, SERVER = "nobody enrols", "into the file", "through the server"

#: Seconds of each call.
Took = list[float]


def fill(people: Crowd, entries: int) -> None:
    """Feature maps near those of real walks, until there are `entries`."""
    random, maps = np.random.default_rng(1), people.local.embed(people.walks)
    with Gallery.open(str(people.settings.gallery)) as gallery:
        while (missing := entries - gallery.count) > 0:
            chosen = maps[random.integers(len(maps), size=min(missing, 500))]
            noise = random.standard_normal(chosen.shape) * chosen.std() / 2
            names = [f"crowd-{gallery.count + i}" for i in range(len(chosen))]
            gallery.add_many(names, (chosen + noise).astype(np.float32))


@contextmanager
def adder(place: str) -> Any:
    """A function that enrols one walk at a server's address, or one feature map in a gallery's file."""
    if "://" in place:
        walk = synthetic.sequence(900, frames=FRAMES)
        with Recognizer.connect(place, timeout=60) as recognizer:
            yield lambda: recognizer.enroll(NAME, walk)
    else:
        with Gallery.open(place) as gallery:
            features = gallery.get([1])[0] + np.float32(1)
            yield lambda: gallery.add(NAME, features)


def enrol(place: str, rate: float, seconds: float, ready: Barrier, told: Connection) -> None:
    """In a process of its own: enrols at a steady rate, waiting for each answer."""
    took: Took = []
    with adder(place) as add:
        ready.wait()
        started = time.perf_counter()
        while (now := time.perf_counter() - started) < seconds:
            time.sleep(max(0.0, len(took) / rate - now))
            before = time.perf_counter()
            add()
            took.append(time.perf_counter() - before)
        told.send((took, len(took) / (time.perf_counter() - started)))


def ask(remote: Recognizer, walks: list[np.ndarray], seconds: float) -> Took:
    """Identifies, again as soon as it is answered."""
    took: Took = []
    stop = time.perf_counter() + seconds
    while (before := time.perf_counter()) < stop:
        remote.identify(walks[len(took) % len(walks)], threshold=THRESHOLD)
        took.append(time.perf_counter() - before)
    return took


def block(
    server: TritonServer, remote: Recognizer, walks: list[np.ndarray], place: str | None, rate: float, seconds: float
) -> dict[str, Any]:
    """Latencies of identifications while a process enrols at `place`, or nobody does."""
    context = multiprocessing.get_context("spawn")
    ready, (told, teller) = context.Barrier(1 if place is None else 2), context.Pipe(duplex=False)
    helper = context.Process(target=enrol, args=(place, rate, seconds, ready, teller))
    if place is not None:
        helper.start()
    ready.wait()
    before = statistics(server)
    found: dict[str, Any] = {"latencies": ask(remote, walks, seconds)}
    found["shortlist"] = per_step(before, statistics(server))["shortlist"]
    if place is not None:
        found["took"], found["rate"] = told.recv()
        helper.join()
        remote.delete(NAME)
    return found


def together(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table, from the blocks of one kind."""
    latencies = [each for found in blocks for each in found["latencies"]]
    steps = [found["shortlist"]["queue"] + found["shortlist"]["compute_infer"] for found in blocks]
    row: dict[str, Any] = {"identifications": len(latencies), "identify_ms": milliseconds(latencies)}
    row["shortlist_ms"] = round(float(np.median(steps)), 3)
    if "rate" in blocks[0]:
        row["enrolments_per_second"] = round(float(np.median([found["rate"] for found in blocks])), 1)
        row["enrolment_ms"] = milliseconds([each for found in blocks for each in found["took"]])
    return row


def show(rows: dict[str, dict[str, Any]]) -> None:
    table = Table("", "enrolled/s", "p50", "p99", "max", "shortlist", "enrolment p50", "p99", title="ms")
    for name, row in rows.items():
        own, theirs = row["identify_ms"], row.get("enrolment_ms", {"p50": "", "p99": ""})
        cells = [row.get("enrolments_per_second", ""), own["p50"], own["p99"], own["max"], row["shortlist_ms"]]
        table.add_row(name, *map(str, [*cells, theirs["p50"], theirs["p99"]]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    asked = parser.parse_args()
    with crowd(people=20, lengths=(FRAMES, FRAMES), threads=1) as people:
        fill(people, asked.entries)
        with people.server() as server, Recognizer.connect(server.grpc_url, timeout=60) as remote:
            ask(remote, people.walks, 1)  # warms up, and loads the index
            places = {QUIET: None, FILE: str(people.settings.gallery), SERVER: server.grpc_url}
            blocks: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
            for _ in range(asked.rounds):
                for name, place in places.items():
                    blocks[name].append(block(server, remote, people.walks, place, asked.rate, asked.seconds))
            if remote.count != asked.entries:
                raise SystemExit(f"{remote.count} entries are left of {asked.entries}")
    rows = {name: together(found) for name, found in blocks.items()}
    show(rows)
    if asked.save:
        figures = {name: value for name, value in vars(asked).items() if name != "save"}
        console.print(save("enrol_while_serving", {**machine(), **figures, "milliseconds": rows}))


if __name__ == "__main__":
    main()
