"""What DRPL and GSAM add to a training step of the published GaitSet: processor time of whole steps and of the losses.

    python benchmarks/training_step.py [--rounds 5]

P = K = 8, 10 frames, 74 identities in the memory (CASIA-B). Steps with the plain triplet loss and with GaitMPL's take
turns in one process, one thread; medians. The difference of whole steps drowns in their noise, so that the share is
that of the losses' own difference, forward and backward. Writes benchmarks/results/training_step.json, which
docs/gaitmpl.md quotes. About a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gaitsdk.models import create
from gaitsdk_training.losses import DRPL, GSAM, GaitMPLLoss

RESULTS = Path(__file__).parent / "results" / "training_step.json"
P, K, FRAMES, IDENTITIES = 8, 8, 10, 74
STEPS = 100  # of the schedules; measured in the middle
PLAIN, GAITMPL = "triplet", "DRPL and GSAM"


def medians(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Processor seconds of each, taking turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = create("gaitset")
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)
    batch, labels = torch.rand(P * K, FRAMES, *model.input_size), torch.arange(P).repeat_interleave(K)
    gsam = GSAM(IDENTITIES, model.strips, model.dims)
    gsam.initialise([(torch.randn(IDENTITIES, model.strips, model.dims), torch.arange(IDENTITIES))])
    losses = {PLAIN: GaitMPLLoss(STEPS), GAITMPL: GaitMPLLoss(STEPS, drpl=DRPL(STEPS), gsam=gsam)}

    def step(loss: GaitMPLLoss) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(model.forward_train(batch)[0], labels, STEPS / 2)[0].backward()
        optimiser.step()

    def alone(loss: GaitMPLLoss) -> None:
        features = torch.randn(P * K, model.strips, model.dims, requires_grad=True)
        loss(features, labels, STEPS / 2)[0].backward()

    steps = medians({name: lambda loss=loss: step(loss) for name, loss in losses.items()}, rounds)
    parts = medians({name: lambda loss=loss: alone(loss) for name, loss in losses.items()}, 5 * rounds)
    return {
        "step_seconds": {name: round(value, 3) for name, value in steps.items()},
        "loss_milliseconds": {name: round(1e3 * value, 1) for name, value in parts.items()},
        "added_percent_of_the_step": round(100 * (parts[GAITMPL] - parts[PLAIN]) / steps[PLAIN], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "machine": f"{platform.machine()}, one thread of {os.cpu_count()}, PyTorch {torch.__version__}"
        f" (load {os.getloadavg()[0]:.0f})",
        "batch": {"p": P, "k": K, "frames": FRAMES, "identities": IDENTITIES},
        **measure(options.rounds),
    }
    Console().print(report)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
