"""What a chain of Triton's Python models costs that does nothing, asked by the SDK's clients.

    python benchmarks/serving_floor.py [--calls 150]

The server's own repository, with a stand-in for the models of the chain: it answers every request with the same
tensors, of the shapes and types of real answers, and neither checks, computes nor records anything. Once it does so at
once; once the first step holds its core for as long as the backbone takes, for that is what a request meets: what
Triton needs has not been used for so long. A third has a single step instead of two. The clients are the SDK's.
Calls in process, to the real server and to those take turns; then each is asked alone for a while, and the processor
time of a request counted, in the client's process and the server's. Writes benchmarks/results/serving_floor.json.
"""

from __future__ import annotations

import argparse
import statistics as numbers
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from serving_world import THRESHOLD, TOP_K, Crowd, closed_loop, crowd, machine, save

from gaitsdk import Recognizer
from gaitsdk.bundle import Bundle
from gaitsdk.runtimes.wire import EMBED, IDENTIFY, SHORTLIST
from gaitsdk_export.triton.config import Batching, Instances, ModelConfig
from gaitsdk_export.triton.configurations import Options, configurations
from gaitsdk_export.triton.pbtxt import to_text
from gaitsdk_export.triton.server import TritonServer
from gaitsdk_export.triton.server import _members as members

PROTOCOLS = ("gRPC", "HTTP")
console = Console(width=110)
STAND_IN = '''"""Answers the same to everybody."""
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

HOLD_S, FINGERPRINT, STRIPS, DIMS, LISTED = {hold_s!r}, {fingerprint!r}, {strips}, {dims}, {listed}
NAMES = np.array([[f"person-{{i}}".encode() for i in range(LISTED)]], object)
#: Tensors that are not numbers of the length of the list.
SPECIAL = {{
    "features": np.zeros((1, STRIPS, DIMS), np.float32),
    "candidate_features": np.zeros((1, LISTED, STRIPS, DIMS), np.float32),
    "runtime": np.array([[json.dumps({{"runtime": "stand-in", "device": "cpu"}}).encode()]], object),
    "candidate_identity": NAMES,
    "identity": NAMES,
    "decision": np.array([[b"known"]], object),
    "fingerprint": np.array([[FINGERPRINT.encode()]], object),
    "gallery_state": np.ones((1, 2), np.int64),
    "numbers": np.ones((1, 4)),
}}


class TritonPythonModel:
    def initialize(self, args):
        self.answers = {{}}
        for output in json.loads(args["model_config"])["output"]:
            kind = pb_utils.triton_string_to_numpy(output["data_type"])
            self.answers[output["name"]] = SPECIAL.get(output["name"], np.ones((1, LISTED), kind))

    def execute(self, requests):
        answers = []
        for request in requests:
            until = time.perf_counter() + HOLD_S
            while time.perf_counter() < until:
                pass
            wanted = set(request.requested_output_names())
            tensors = [pb_utils.Tensor(name, array) for name, array in self.answers.items() if name in wanted]
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
'''


def stand_in(people: Crowd, bundle: Bundle, steps: tuple[str, ...], hold_s: float) -> TritonServer:
    """A server whose chain is of stand-ins: of those models, or of `identify` alone in place of the ensemble."""
    server = people.server()
    for number, name in enumerate(steps):
        code = STAND_IN.format(
            hold_s=0.0 if number else hold_s, fingerprint=bundle.fingerprint, strips=bundle.strips, dims=bundle.dims,
            listed=TOP_K,
        )  # fmt: skip
        folder = Path(server.repository) / name
        (folder / "1" / "model.py").write_text(code, encoding="utf-8")
    if steps == (IDENTIFY,):
        ensemble = next(each for each in configurations(bundle) if each.name == IDENTIFY)
        single = ModelConfig(
            IDENTIFY, "python", ensemble.inputs, ensemble.outputs, max_batch_size=ensemble.max_batch_size,
            batching=Batching(0, Options().max_queue), instances=(Instances(Options().instances),),
        )  # fmt: skip
        (folder / "config.pbtxt").write_text(to_text(single), encoding="utf-8")
    return server


def in_process(people: Crowd, calls: int) -> dict[str, float]:
    """Medians of a call here and of its stages, in milliseconds."""
    times: dict[str, list[float]] = {}
    for i in range(-10, calls):
        started = time.perf_counter()
        result = people.local.identify(people.walks[i % len(people.walks)], TOP_K, threshold=THRESHOLD)
        taken = {"call": (time.perf_counter() - started) * 1e3, **result.timings_ms}
        if i >= 0:
            for name, value in taken.items():
                times.setdefault(name, []).append(value)
    return {name: numbers.median(each) for name, each in times.items()}


def processor_ms(people: Crowd, recognizer: Recognizer, server: TritonServer | None, seconds: float) -> float:
    """Milliseconds of processor time of a request, here and in the server, asked by one client."""

    def used() -> float:
        nanoseconds = 0
        for process in () if server is None else members(server.pid):
            for task in Path(f"/proc/{process}/task").iterdir():
                with suppress(OSError):  # a thread that ended meanwhile
                    nanoseconds += int((task / "schedstat").read_text().split()[0])
        return time.process_time() * 1e3 + nanoseconds / 1e6

    closed_loop(recognizer, people.walks, 1, 0.5)
    before = used()
    _, answered = closed_loop(recognizer, people.walks, 1, seconds)
    return (used() - before) / len(answered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    bundle, chain = Bundle.load(), (EMBED, SHORTLIST)
    with crowd(threads=1) as people, ExitStack() as stack:
        alone = in_process(people, asked.calls)
        held = alone["embed"] / 1e3
        servers = {
            "as it is": (people.server(), 0.0),
            "two steps, the first as long as the backbone": (stand_in(people, bundle, chain, held), held),
            "two steps that answer at once": (stand_in(people, bundle, chain, 0.0), 0.0),
            "one step, as long as the backbone": (stand_in(people, bundle, (IDENTIFY,), held), held),
            "one step that answers at once": (stand_in(people, bundle, (IDENTIFY,), 0.0), 0.0),
        }
        ways: dict[tuple[str, str], Recognizer] = {}
        for name, (server, _) in servers.items():
            stack.enter_context(server)
            for protocol, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url)):
                ways[name, protocol] = stack.enter_context(Recognizer.connect(url, timeout=60))
        seconds: dict[Any, list[float]] = {way: [] for way in ("in process", "beside", *ways)}
        for i in range(-10, asked.calls):
            walk = people.walks[i % len(people.walks)]
            for way, recognizer in ways.items():
                # Before each: what a client does between two requests, and the caches as a working process leaves them.
                for which, each in (("in process", people.local), (way, recognizer)):
                    started = time.perf_counter()
                    result = each.identify(walk, TOP_K, threshold=THRESHOLD)
                    taken = time.perf_counter() - started
                    if i >= 0:
                        seconds[which].append(taken)
                    # What a call does before and after its stages, a client does, too.
                    if i >= 0 and which == "in process":
                        seconds["beside"].append(taken - sum(result.timings_ms.values()) / 1e3)
        processor = {}
        for (name, protocol), each in ways.items():
            server, hold = servers[name]
            if not hold:  # those that hold a core use it
                processor[name, protocol] = processor_ms(people, each, server, asked.seconds)
        here = {**alone, "processor": processor_ms(people, people.local, None, asked.seconds)}
    p50 = {way: numbers.median(each) * 1e3 for way, each in seconds.items()}
    rows = []
    table = Table("server", "gRPC, ms more", "HTTP, ms more", "gRPC, processor ms", "HTTP, processor ms")
    for name, (_, hold) in servers.items():
        less = p50["in process"] if name == "as it is" else hold * 1e3 + p50["beside"]
        more = {protocol: round(p50[name, protocol] - less, 2) for protocol in PROTOCOLS}
        spent = {each: round(processor[name, each], 2) for each in PROTOCOLS if (name, each) in processor}
        rows.append({"server": name, "more_ms": more, "processor_ms": spent})
        table.add_row(name, *(f"{each:.2f}" for each in (*more.values(), *spent.values())))
    console.print(table)
    here |= {"call, in turns": p50["in process"], "beside its stages, in turns": p50["beside"]}
    here = {name: round(value, 2) for name, value in here.items()}
    console.print(f"in process, ms: {here}")
    console.print(save("serving_floor", {**machine(), **vars(asked), "in_process_ms": here, "servers": rows}))


if __name__ == "__main__":
    main()
