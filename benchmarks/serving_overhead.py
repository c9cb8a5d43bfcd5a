"""What the server costs over the same work in this process: one client's latency, eight clients' throughput, and where
the time goes in each step of the ensemble.

    python benchmarks/serving_overhead.py [--calls 150] [--rounds 6] [--seconds 3] [--clients 8]

In-process and server take turns, call by call or block by block, so that a busy machine disturbs both alike. The
networks have `--threads` CPU threads here and there, the server `--instances` copies of them.
Writes benchmarks/results/serving_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics as numbers
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from serving_world import (
    PHASES,
    THRESHOLD,
    TOP_K,
    Crowd,
    closed_loop,
    crowd,
    machine,
    milliseconds,
    per_step,
    save,
    statistics,
)

from gaitsdk import Recognizer
from gaitsdk_export.triton.repository import Options
from gaitsdk_export.triton.server import TritonServer

console = Console(width=110)


def one_client(people: Crowd, server: TritonServer, ways: dict[str, Recognizer], calls: int) -> dict[str, Any]:
    """Latencies of the same call by each way in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    before = statistics(server)
    for i in range(-10, calls):  # ten to warm up
        walk = people.walks[i % len(people.walks)]
        for name, recognizer in ways.items():
            started = time.perf_counter()
            recognizer.identify(walk, TOP_K, threshold=THRESHOLD)
            if i >= 0:
                seconds[name].append(time.perf_counter() - started)
    steps = per_step(before, statistics(server))
    return {"milliseconds": {name: milliseconds(each) for name, each in seconds.items()}, "steps": steps}


def many_clients(
    people: Crowd, server: TritonServer, ways: dict[str, Recognizer], clients: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Throughput of each way in turn, round by round, and its share of the in-process one (medians)."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    before = statistics(server)
    for _ in range(rounds):
        for name, recognizer in ways.items():
            rates[name].append(closed_loop(recognizer, people.walks, clients, seconds)[0])
    steps = per_step(before, statistics(server))
    here = rates["in process"]
    shares = {name: [a / b for a, b in zip(each, here, strict=True)] for name, each in rates.items()}
    return {
        "per_second": {name: round(numbers.median(each), 1) for name, each in rates.items()},
        "share": {name: round(numbers.median(each), 3) for name, each in shares.items()},
        "steps": steps,
    }


def show_steps(title: str, steps: dict[str, dict[str, float]]) -> None:
    columns = (*PHASES, "total", "mean_batch")
    table = Table("model", *columns, title=title)
    for name, row in steps.items():
        table.add_row(name, *(f"{row[each]:.2f}" for each in columns))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--instances", type=int, default=Options().instances)
    asked = parser.parse_args()
    with (
        crowd(lengths=(asked.frames, asked.frames), threads=asked.threads) as people,
        people.server(Options(instances=asked.instances)) as server,
        Recognizer.connect(server.grpc_url, timeout=60) as grpc,
        Recognizer.connect(server.http_url, timeout=60) as http,
    ):
        ways = {"in process": people.local, "gRPC": grpc, "HTTP": http}
        alone = one_client(people, server, ways, asked.calls)
        together = many_clients(people, server, ways, asked.clients, asked.rounds, asked.seconds)
    for name, row in alone["milliseconds"].items():
        console.print(f"{name:11} one client: p50 {row['p50']:6.2f} ms, p95 {row['p95']:6.2f} ms")
    show_steps("one client, ms per request", alone["steps"])
    for name, rate in together["per_second"].items():
        console.print(f"{name:11} {asked.clients} clients: {rate:6.1f} per second, {together['share'][name]:.1%}")
    show_steps(f"{asked.clients} clients, ms per request", together["steps"])
    figures = {**machine(), **vars(asked), "one_client": alone, "many_clients": together}
    console.print(save("serving_overhead", figures))


if __name__ == "__main__":
    main()
