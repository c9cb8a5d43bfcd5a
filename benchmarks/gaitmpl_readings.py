"""GaitMPL prints some equations that it cannot have meant: what each reading does on a small but real training.

    python benchmarks/gaitmpl_readings.py [--only NAME] [--steps 160] [--seeds 3]

A quarter-width GaitSet at half resolution, P = 8, K = 4, learns 60 synthetic walkers (normal, bag, coat; four views)
and is asked for 60 others: Rank-1 from normal walks to bags and coats, between different views. Every reading sees the
same weights, batches and frames for the same seed; a row is compared with the baseline seed by seed. One thread; about
ten minutes. Rows are written as they come, by length and name, to benchmarks/results/gaitmpl_readings.json, which
docs/gaitmpl.md explains. What the losses cost: training_step.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from gaitsdk.distance import pairwise
from gaitsdk.models import create
from gaitsdk_training.data import PxKSampler, SequenceDataset, frame_indices, from_synthetic
from gaitsdk_training.losses import DRPL, GSAM, GaitMPLLoss

RESULTS = Path(__file__).parent / "results" / "gaitmpl_readings.json"
MODEL: dict[str, Any] = {"size": (32, 22), "channels": (8, 16, 32), "dims": 64, "bins": (4, 2, 1)}
TYPES, VIEWS = ("nm-01", "nm-02", "bg-01", "cl-01"), ("036", "054", "072", "090")
PEOPLE, FRAMES, P, K, LENGTH = 60, 8, 8, 4, 3
RATE, WARMUP, DROP = 3e-3, 20, 0.7  # peak learning rate, steps until it, share of the run after which it is a third
console = Console(soft_wrap=True)


@dataclass(frozen=True)
class Reading:
    """Options of the parts; None leaves a part out."""

    drpl: dict[str, Any] | None = None
    gsam: dict[str, Any] | None = None
    loss: dict[str, Any] = field(default_factory=dict)


#: Everything as printed; the readings below change one thing, or build one on another.
PRINTED_DRPL = {
    "weights": "exponential-of-exponential",
    "progress": "printed",
    "mean": "printed",
    "reduction": "sum",
    "own_pair": "printed",
    "weight_gradient": "through",
}
NONZERO = {**PRINTED_DRPL, "reduction": "nonzero_mean"}
MEANS = {**NONZERO, "mean": "weights"}
SOFTMAX = {**MEANS, "weights": "softmax"}
SHARPENING = {**SOFTMAX, "progress": "to_minimum", "own_pair": "counted"}
PRINTED_GSAM = {"present": "batch", "absent": "printed", "variance": "batch"}
FREE = {**PRINTED_GSAM, "variance_weight": 0.0}
READINGS: dict[str, Reading] = {
    "baseline (batch-all)": Reading(),
    "DRPL, all as printed": Reading(PRINTED_DRPL),
    "reduction nonzero_mean": Reading(NONZERO),
    "reduction mean": Reading({**PRINTED_DRPL, "reduction": "mean"}),
    "+ own_pair counted": Reading({**NONZERO, "own_pair": "counted"}),
    "+ mean weights": Reading(MEANS),
    "+ mean weights, to_minimum": Reading({**MEANS, "progress": "to_minimum"}),
    "+ mean weights, detached": Reading({**MEANS, "weight_gradient": "detached"}),
    "+ softmax": Reading({**NONZERO, "weights": "softmax"}),
    "+ softmax, mean weights": Reading(SOFTMAX),
    "+ softmax, mean weights, to_minimum": Reading({**SOFTMAX, "progress": "to_minimum"}),
    "+ softmax, mean weights, detached": Reading({**SOFTMAX, "weight_gradient": "detached"}),
    "BH alone: vanilla": Reading({**SOFTMAX, "batch_all": False, "batch_hard": "vanilla", "smoothness": "equal"}),
    "BH alone: printed weights, 1/K": Reading({**NONZERO, "batch_all": False, "smoothness": "equal"}),
    "BH alone: printed weights": Reading({**MEANS, "batch_all": False, "smoothness": "equal"}),
    "BH alone: softmax": Reading({**SOFTMAX, "batch_all": False, "smoothness": "equal"}),
    "GSAM, all as printed": Reading(None, PRINTED_GSAM),
    "without variance": Reading(None, FREE),
    "variance identity": Reading(None, {**PRINTED_GSAM, "variance": "identity"}),
    "no variance, no update": Reading(None, {**FREE, "update": "none"}),
    "no variance, PU batch": Reading(None, {**FREE, "update": "momentum"}),
    "no variance, PU identity": Reading(None, {**FREE, "update": "momentum", "present": "identity"}),
    "no variance, present identity": Reading(None, {**FREE, "present": "identity"}),
    "no variance, absent towards": Reading(None, {**FREE, "present": "identity", "absent": "towards"}),
    "no variance, absent movement": Reading(None, {**FREE, "present": "identity", "absent": "movement"}),
    "+ softmax, mean weights, to_minimum, own_pair counted": Reading(SHARPENING),
    "both, sum": Reading({**SHARPENING, "reduction": "sum"}, FREE),
    "both, sharpening": Reading(SHARPENING, FREE),
    "both, defaults": Reading({}, {}),
}


def walkers(start: int) -> SequenceDataset:
    return from_synthetic(range(start, start + PEOPLE), types=TYPES, views=VIEWS, frames=FRAMES, noise=0.1)


def network_input(silhouettes: Any) -> Tensor:
    """uint8 [B, T, 64, 64] -> [B, T, 32, 22]: halved by averaging, then cut."""
    frames = torch.from_numpy(np.ascontiguousarray(silhouettes)).float().div_(255.0)
    return torch.nn.functional.avg_pool2d(frames, 2)[..., 5:27]


def rank1(features: Tensor, dataset: SequenceDataset) -> dict[str, float]:
    """Percent, gallery nm-01, probes bg-01 and cl-01, mean over pairs of different views."""
    distances = pairwise(features.numpy(), features.numpy())
    found = {}
    for name, kind in (("BG", "bg-01"), ("CL", "cl-01")):
        cells = []
        for u in VIEWS:
            for v in VIEWS:
                if u != v:
                    probes = np.flatnonzero((dataset.types == kind) & (dataset.views == u))
                    gallery = np.flatnonzero((dataset.types == "nm-01") & (dataset.views == v))
                    nearest = dataset.labels[gallery][distances[np.ix_(probes, gallery)].argmin(axis=1)]
                    cells.append(float((nearest == dataset.labels[probes]).mean()))
        found[name] = 100.0 * float(np.mean(cells))
    return found


def embed(model: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in inputs.split(64)])


def alikeness(memory: Tensor) -> float:
    """Mean cosine between the memory's elements of different identities, per strip."""
    units = torch.nn.functional.normalize(memory, dim=-1)
    cosines = torch.einsum("asd,bsd->sab", units, units)
    count = len(memory)
    return float((cosines.sum(dim=(1, 2)) - count).mean() / (count * (count - 1)))


def train(reading: Reading, seed: int, steps: int, data: SequenceDataset, test: SequenceDataset) -> dict[str, Any]:
    """One run: figures on the test identities, and what happened on the way."""
    torch.manual_seed(seed)
    model = create("gaitset", **MODEL).to(memory_format=torch.channels_last)
    drpl = None if reading.drpl is None else DRPL(steps, **reading.drpl)
    gsam = None if reading.gsam is None else GSAM(len(data.classes), model.strips, model.dims, **reading.gsam)
    loss_of = GaitMPLLoss(steps, drpl=drpl, gsam=gsam, **reading.loss)
    everything = network_input(np.stack([data[i] for i in range(len(data))]))
    labels = torch.from_numpy(data.labels)
    if gsam is not None:
        gsam.initialise([(embed(model, everything), labels)])
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    sampler = PxKSampler(data.labels, P, K, seed)
    largest, finite = 0.0, True
    terms: dict[str, Tensor] = {}
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * (1.0 if step < DROP * steps else 1 / 3)
        chosen = torch.from_numpy(sampler.batch(step))
        rng = np.random.default_rng((seed, step))
        frames = np.stack([frame_indices(rng, FRAMES, LENGTH, "fixed_unordered") for _ in chosen])
        features, _ = model.forward_train(everything[chosen[:, None], torch.from_numpy(frames)])
        loss, terms = loss_of(features, labels[chosen], step + 1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf))
        finite = finite and bool(torch.isfinite(loss)) and norm < float("inf")
        largest = max(largest, norm)
        optimiser.step()
    found = embed(model, network_input(np.stack([test[i] for i in range(len(test))])))
    figures: dict[str, Any] = rank1(found, test)
    figures["mean"] = statistics.mean((figures["BG"], figures["CL"]))
    figures["finite"] = finite
    figures["largest_gradient"] = largest
    figures["feature_norm"] = float(found.norm(dim=-1).mean())
    figures["terms"] = {name: float(value) for name, value in terms.items()}
    if gsam is not None:
        figures["memory_alikeness"] = alikeness(gsam.memory)
        trained = embed(model, everything)
        centroids = torch.stack([trained[labels == i].mean(dim=0) for i in range(len(data.classes))])
        figures["centroid_alikeness"] = alikeness(centroids)
    return figures


def summary(runs: list[dict[str, Any]], baseline: list[dict[str, Any]] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"finite": all(run["finite"] for run in runs)}
    for name in ("BG", "CL", "mean"):
        row[name] = round(statistics.mean(run[name] for run in runs), 1)
    row["mean_by_seed"] = [round(run["mean"], 1) for run in runs]
    if baseline is not None:
        row["gain_by_seed"] = [round(a["mean"] - b["mean"], 1) for a, b in zip(runs, baseline, strict=True)]
    for name in ("largest_gradient", "feature_norm", "memory_alikeness", "centroid_alikeness"):
        if name in runs[0]:
            row[name] = float(f"{statistics.mean(run[name] for run in runs):.3g}")
    row["last_terms"] = {
        name: float(f"{statistics.mean(run['terms'][name] for run in runs):.3g}") for name in runs[0]["terms"]
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="this reading (may be repeated)")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"readings": {}}
    rows = report["readings"].setdefault(f"{options.steps} steps, {options.seeds} seeds", {})
    report["machine"] = f"{platform.machine()}, one thread of {os.cpu_count()}, torch {torch.__version__}, shared"

    def write() -> None:
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")

    wanted = [name for name in READINGS if not options.only or name in options.only]
    first = next(iter(READINGS))
    data, test = walkers(1), walkers(1001)
    baseline: list[dict[str, Any]] | None = None
    for name in dict.fromkeys([first, *wanted] if wanted else []):
        started = time.perf_counter()
        runs = [train(READINGS[name], seed, options.steps, data, test) for seed in range(options.seeds)]
        row = rows[name] = summary(runs, baseline)
        baseline = runs if name == first else baseline
        console.print(
            f"{time.perf_counter() - started:5.1f} s  {name:38s} BG {row['BG']:5.1f}  CL {row['CL']:5.1f}", row
        )
        write()


if __name__ == "__main__":
    main()
