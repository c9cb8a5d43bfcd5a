"""Do the papers' methods learn what they promise? Small trainings on synthetic walkers, three seeds each.

    python benchmarks/proof_of_learning.py [--part gaitmpl,cargait] [--seeds 3] [--work runs/proof]

(a) GaitMPL, the shape of its Table III: a quarter-width GaitSet at half resolution, trained with the batch-all triplet
loss, + DRPL, + GSAM, and both (++), on 150 walkers with segmentation noise, P = 8, K = 4, 10 frames; measured by
CASIA-B's protocol on 100 walkers whom nothing saw before. (b) CarGait, the shape of its Table 5, rows 1, 3, 4 and 10:
the shipped backbone's shortlist, the binary classifier, CarGait without the classification loss, and CarGait,
trained on 160 walkers, chosen on 40 and measured on 40 others.

Within a seed all arms see the same weights at the start, the same batches and frames. Every run lies in a folder of its
own and goes on where it was stopped; benchmarks/results/proof_of_learning.json is written after each, and
`benchmarks/proof_table.py` makes the tables of docs/proof.md of it. About two hours of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.data import SequenceDataset, from_synthetic
from gaitsdk_training.evaluation import evaluate, from_network
from gaitsdk_training.features import cached_features, embed_dataset
from gaitsdk_training.lists import ListSet
from gaitsdk_training.recipes.default import FRAMES, RERANKER_IDENTITIES, RERANKER_TYPES, VALIDATION_IDENTITIES
from gaitsdk_training.reranker import RerankerTraining, train_reranker

RESULTS = Path(__file__).parent / "results" / "proof_of_learning.json"
TRAINING, TEST = range(1, 151), range(1001, 1101)
TRAINING_TYPES, VIEWS = ("nm-01", "nm-02", "bg-01", "cl-01"), ("000", "036", "054", "072", "090", "126")
#: The walks that are rendered for the test, by the name that the protocol gives their part in it.
PROTOCOL_TYPES = {"nm-01": "nm-01", "nm-02": "nm-02", "nm-03": "nm-05", "bg-01": "bg-01", "cl-01": "cl-01"}
#: The reading of Eq. 2 and 3 that sharpens as Figure 4 shows, and GSAM without Eq. 10: docs/gaitmpl.md.
SHARPENING, FREE = {"weights": "softmax", "progress": "to_minimum"}, {"variance_weight": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "GaitSet": {},
    "GaitSet + D": {"drpl": SHARPENING},
    "GaitSet + G": {"gsam": FREE},
    "GaitSet++": {"drpl": SHARPENING, "gsam": FREE},
    "GaitSet++ as printed": {"drpl": {}, "gsam": {}},
}
BACKBONE = BackboneTraining(
    model="gaitset", options={"size": (32, 32), "channels": (8, 16, 32), "dims": 64, "bins": (8, 4, 2, 1)},
    p=8, k=4, frames=10, steps=700, lr=2e-3, schedule="cosine", checkpoint_every=100, device="cpu",
)  # fmt: skip
RERANKERS: dict[str, dict[str, Any]] = {
    "binary classifier": {"method": "classifier", "lr": 1e-4},
    "CarGait, alpha = 0": {"alpha": 0.0},
    "CarGait": {},
}
RERANKER = RerankerTraining(
    identities=16, sequences=4, negatives=4, steps=600, lr=3e-4, schedule="cosine", clip_norm=10.0, validate_every=150,
    checkpoint_every=150, device="cpu",
)  # fmt: skip
console = Console(soft_wrap=True)


def walkers(identities: range, types: Sequence[str], views: Sequence[str], work: Path) -> SequenceDataset:
    console.print(f"{len(identities)} walkers, {len(types)} walks, {len(views)} views", highlight=False)
    return from_synthetic(
        identities, types=types, views=views, frames=FRAMES, noise=0.1, workers=1, cache=work / "walkers"
    )


def halved(dataset: SequenceDataset) -> SequenceDataset:
    """The same sequences at half the resolution, each pixel the mean of four."""
    frames: list[NDArray[np.uint8]] = []
    for index in range(len(dataset)):
        each = dataset[index].astype(np.uint16)
        sums = each[:, ::2, ::2] + each[:, 1::2, ::2] + each[:, ::2, 1::2] + each[:, 1::2, 1::2]
        frames.append(((sums + 2) // 4).astype(np.uint8))
    return SequenceDataset(frames, dataset.identities, dataset.types, dataset.views)


def figures(features: Any, dataset: SequenceDataset, **options: Any) -> dict[str, float]:
    """Rank-1 and Rank-5 by CASIA-B's protocol, in percent, with the conditions'."""
    types = [PROTOCOL_TYPES.get(each, each) for each in dataset.types.tolist()]
    found = evaluate(features, dataset.identities, types, dataset.views, "casiab", **options)
    return {key: round(float(found[key]), 2) for key in ("rank1", "rank1/NM", "rank1/BG", "rank1/CL", "rank5")}


class Results:
    """What has been measured, by part, arm and seed; written whenever something is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        self.found["command"] = "python benchmarks/proof_of_learning.py"

    def has(self, part: str, arm: str, seed: int) -> bool:
        return str(seed) in self.found.get(part, {}).get(arm, {})

    def add(self, part: str, arm: str, seed: int, **what: Any) -> None:
        arms = self.found.setdefault(part, {})
        arms.setdefault(arm, {})[str(seed)] = what
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        console.print(f"{part}: {arm}, seed {seed}: {json.dumps(what)}", highlight=False)


def gaitmpl(results: Results, work: Path, seeds: int, steps: int, arms: Sequence[str]) -> None:
    training = halved(walkers(TRAINING, TRAINING_TYPES, VIEWS, work))
    test = halved(walkers(TEST, tuple(PROTOCOL_TYPES), VIEWS, work))
    results.found["gaitmpl_setting"] = {
        "sequences": len(training), "identities": len(TRAINING), "test_identities": len(TEST), "steps": steps,
        "batch": [BACKBONE.p, BACKBONE.k], "frames": BACKBONE.frames, "options": BACKBONE.options,
    }  # fmt: skip
    for seed in range(seeds):
        for arm, options in ARMS.items():
            if arm not in arms or results.has("gaitmpl", arm, seed):
                continue
            config = replace(BACKBONE, seed=seed, steps=steps, validate_every=steps, **options)
            folder = work / f"gaitmpl-{arm.replace(' ', '_')}-{seed}-{steps}"
            result = train_backbone(training, config, folder)
            features = embed_dataset(result.model, test)
            results.add("gaitmpl", arm, seed, **figures(features, test), minutes=round(result.minutes, 1))


def cargait(results: Results, work: Path, seeds: int, steps: int) -> None:
    bundle = Bundle.load()
    backbone = bundle.build_backbone()
    known = walkers(RERANKER_IDENTITIES, RERANKER_TYPES, synthetic.VIEWS, work)
    test = walkers(VALIDATION_IDENTITIES, synthetic.TYPES, synthetic.VIEWS, work)
    known_features = cached_features(backbone, known, work / "known.npy")
    test_features = cached_features(backbone, test, work / "test.npy")
    split = sorted({str(each) for each in known.identities})[: len(RERANKER_IDENTITIES) * 4 // 5]
    lists = {
        name: ListSet.build(
            known_features[rows], known.identities[rows], known.types[rows], known.views[rows], v=30, scope="view_pair",
            gallery_types=("nm-01", "nm-02", "nm-03"), galleries_per_probe=2,
        )
        for name, rows in (
            ("training", np.isin(known.identities, split)), ("validation", ~np.isin(known.identities, split)),
        )
    }  # fmt: skip
    results.found["cargait_setting"] = {
        "bundle": bundle.fingerprint, "identities": [len(split), len(RERANKER_IDENTITIES) - len(split)],
        "test_identities": len(VALIDATION_IDENTITIES), "steps": steps, "k": RERANKER.k,
    }  # fmt: skip
    measure = partial(figures, test_features, test)
    if not results.has("cargait", "initial ranking", 0):
        results.add("cargait", "initial ranking", 0, **measure())
    for seed in range(seeds):
        for arm, options in RERANKERS.items():
            if results.has("cargait", arm, seed):
                continue
            config = replace(RERANKER, **{"seed": seed, "steps": steps, **options})
            folder = work / f"cargait-{arm.replace(' ', '_')}-{seed}-{steps}"
            started = time.perf_counter()
            result = train_reranker(lists["training"], lists["validation"], config, folder)
            minutes = round((time.perf_counter() - started) / 60.0, 1)
            results.add(
                "cargait", arm, seed, **measure(reranker=from_network(result.model), k=RERANKER.k), minutes=minutes
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="gaitmpl,cargait", help="comma-separated; default %(default)s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/proof"), help="walkers, features and checkpoints")
    parser.add_argument("--arms", default=",".join(ARMS), help="of GaitMPL's part; default %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbone-steps", type=int, default=BACKBONE.steps)
    parser.add_argument("--reranker-steps", type=int, default=RERANKER.steps)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.out)
    for part in options.part.split(","):
        if part == "gaitmpl":
            gaitmpl(results, options.work, options.seeds, options.backbone_steps, options.arms.split(","))
        elif part == "cargait":
            cargait(results, options.work, options.seeds, options.reranker_steps)
        else:
            parser.error(f"no part is called {part!r}; there are gaitmpl and cargait")


if __name__ == "__main__":
    main()
