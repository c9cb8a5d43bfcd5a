"""Which batch, copies of the networks and delay serve a crowd of clients best on this machine.

    python benchmarks/serving_batching.py [--clients 16] [--rounds 3] [--seconds 2]

Clients ask with walks of 20 to 40 frames as soon as they are answered. All servers run at once and are asked in turns.
Writes benchmarks/results/serving_batching.json.
"""

from __future__ import annotations

import argparse
import statistics as numbers
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.table import Table
from serving_world import Crowd, closed_loop, crowd, machine, milliseconds, per_step, save, statistics

from gaitsdk import Recognizer
from gaitsdk_export.triton.repository import Options

LENGTHS = (20, 40)
#: max_batch, instances, threads of each (None: all cores), max_delay_us
CHOICES = (
    *((batch, 2, None, 0) for batch in (1, 2, 4, 8, 16)),
    (4, 2, None, 5000),
    *((batch, 2, 1, 0) for batch in (2, 4, 8)),
    *((batch, 1, None, 0) for batch in (4, 8)),
)
COLUMNS = ("max_batch", "instances", "threads", "max_delay_us")


def measure(people: Crowd, clients: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each choice: throughput (median of the rounds), latencies, mean batch of `embed`."""
    with ExitStack() as stack:
        servers, recognizers = [], []
        for batch, instances, threads, delay in CHOICES:
            options = Options(max_batch=batch, instances=instances, max_delay_us=delay)
            servers.append(stack.enter_context(people.server(options, threads)))
            recognizers.append(stack.enter_context(Recognizer.connect(servers[-1].grpc_url, timeout=60)))
        for recognizer in recognizers:
            closed_loop(recognizer, people.walks, clients, 0.5)
        before = [statistics(server) for server in servers]
        rates: list[list[float]] = [[] for _ in CHOICES]
        taken: list[list[float]] = [[] for _ in CHOICES]
        for _ in range(rounds):
            for each, recognizer in enumerate(recognizers):
                rate, latencies = closed_loop(recognizer, people.walks, clients, seconds)
                rates[each].append(rate)
                taken[each] += latencies
        steps = [per_step(then, statistics(server)) for then, server in zip(before, servers, strict=True)]
    return [
        {
            **dict(zip(COLUMNS, choice, strict=True)),
            "per_second": round(numbers.median(rate), 1),
            "mean_batch": row["embed"]["mean_batch"],
            **milliseconds(latencies),
        }
        for choice, rate, latencies, row in zip(CHOICES, rates, taken, steps, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args()
    with crowd(lengths=LENGTHS) as people:
        rows = measure(people, asked.clients, asked.rounds, asked.seconds)
    table = Table(*rows[0], title=f"{asked.clients} clients, walks of {LENGTHS[0]} to {LENGTHS[1]} frames; ms")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)
    print(save("serving_batching", {**machine(), **vars(asked), "lengths": LENGTHS, "choices": rows}))


if __name__ == "__main__":
    main()
