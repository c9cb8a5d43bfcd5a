"""The shipped bundle, from nothing: synthetic walkers -> backbone -> CarGait -> `default.gait`.

    python -m gaitsdk_training.recipes.default --out sdk/gaitsdk/bundles/default.gait

Four sets of identities, none of whom is in another: for the backbone, for CarGait, for validation, for the test (which
nothing here reads; benchmarks/shipped_bundle.py does). The backbone learns in two runs, CarGait on identities that the
backbone never saw, because their lists are as hard as those of strangers: on the backbone's own training identities
hardly anything is left to re-rank. Its training sequences enter twice, as they are and augmented: trained on clean
walkers alone, it learned what only clean walkers have, and made real walks worse (docs/design.md). Of what it learned,
the share is used that orders the validation lists best, with four walks of everybody enrolled and with one.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.models import GaitModel
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.data import Augmentation, SequenceDataset, augment, from_synthetic
from gaitsdk_training.features import embed_dataset
from gaitsdk_training.list_validation import ListValidation
from gaitsdk_training.lists import ListSet
from gaitsdk_training.reranker import RerankerTraining, train_reranker
from gaitsdk_training.shrinkage import shrunk

BACKBONE_IDENTITIES = range(1, 501)
RERANKER_IDENTITIES = range(1001, 1201)
VALIDATION_IDENTITIES = range(2001, 2041)
TEST_IDENTITIES = range(4001, 4101)

#: Sequences per identity and view. One walk in a bag and one in a coat are another bag and coat for everybody.
TYPES = ("nm-01", "nm-02", "bg-01", "cl-01")
FRAMES = 20

#: A narrow GaitBase: 30 frames in about 25 ms on one core.
BACKBONE: dict[str, Any] = {
    "channels": (16, 32, 64, 96),
    "stem_stride": 2,
    "strides": (1, 2, 1, 1),
    "dims": 128,
    "strips": 16,
}
BACKBONE_TRAINING = BackboneTraining(
    model="gaitbase",
    options=BACKBONE,
    p=8,
    k=8,
    frames=6,
    steps=2000,
    lr=1e-3,
    schedule="onecycle",
    augmentation=Augmentation(affine=0.3, erode=0.15, dilate=0.15, erase=0.15, drop_rows=0.1),
    gsam={"variance_weight": 0.0},  # without the variance of Eq. 10: docs/proof.md
    validate_every=500,
    checkpoint_every=250,
)
#: Then once more, from those weights with a new classifier and new centroids, at a third of the rate: better on
#: strangers and on real walks, where a longer first run was worse on the latter (docs/design.md).
BACKBONE_TUNING = replace(BACKBONE_TRAINING, steps=400, lr=3e-4, schedule="cosine", validate_every=200)
#: Walks enrolled where CarGait learns. The share of its attention is chosen with all of them enrolled and with one.
GALLERY = synthetic.TYPES[:4]
#: Of the second copy of CarGait's training sequences, before the backbone embeds them.
RERANKER_TYPES = ("nm-01", "nm-02", "nm-03", "bg-01", "cl-01")
RERANKER_AUGMENTATION = Augmentation(
    affine=0.5, shear=0.1, scale=0.1, erode=0.25, dilate=0.25, erase=0.1, drop_rows=0.05
)
#: Share of them that lose their grey edges, as masks do that nobody interpolated.
BINARY = 0.5
RERANKER_TRAINING = RerankerTraining(
    identities=16,
    sequences=4,
    negatives=4,
    steps=2000,
    lr=3e-4,
    schedule="cosine",
    clip_norm=10.0,
    validate_every=250,
    checkpoint_every=500,
)
LICENCE = "Apache-2.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("sdk/gaitsdk/bundles/default.gait"), help="the bundle to write"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/default"), help="data and checkpoints; an interrupted run goes on"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that render walkers")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    backbone, backbone_notes = _backbone(options.work, options.workers)
    reranker, reranker_notes = _reranker(backbone, options.work, options.workers)
    bundle = Bundle.create(
        options.out,
        backbone=backbone,
        reranker=reranker,
        k=RERANKER_TRAINING.k,
        licence=LICENCE,
        training={
            "data": "synthetic walkers (gaitsdk.synthetic, seed 0); no recording of a real person",
            "command": "make bundle",
            "backbone": backbone_notes,
            "reranker": reranker_notes,
        },
        overwrite=True,
    )
    logging.info("wrote %s, model %s", bundle.path, bundle.fingerprint[:12])


def _walkers(identities: range, work: Path, workers: int, types: tuple[str, ...] = TYPES) -> SequenceDataset:
    with _bar(f"walkers {identities.start} to {identities.stop - 1}") as advance:
        return from_synthetic(
            identities,
            types=types,
            frames=FRAMES,
            noise=0.1,
            workers=workers,
            cache=work / "walkers",
            progress=lambda done, total: advance(done / total, ""),
        )


def _backbone(work: Path, workers: int) -> tuple[GaitModel, dict[str, Any]]:
    training = _walkers(BACKBONE_IDENTITIES, work, workers)
    validation = _walkers(VALIDATION_IDENTITIES, work, workers, ("nm-01", "nm-02", "cl-01"))
    stages: dict[str, Any] = {}
    init: Bundle | None = None
    for name, config in (("backbone", BACKBONE_TRAINING), ("tuning", BACKBONE_TUNING)):
        with _bar(name) as advance:
            result = train_backbone(
                training,
                config,
                work / name,
                validation=validation,
                init=init,
                progress=lambda share, report: advance(share, f"loss {report['loss']:.3f}"),
            )
        init = Bundle.create(work / f"{name}.gait", backbone=result.model, overwrite=True)
        stages[name] = {
            "config": asdict(config),
            "best_step": result.step,
            "validation_cross_view_rank1": None if result.rank1 is None else round(result.rank1, 2),
        }
    notes = {
        "identities": _span(BACKBONE_IDENTITIES),
        "validation_identities": _span(VALIDATION_IDENTITIES),
        "sequences": len(training),
        **stages["backbone"],
        "tuning": stages["tuning"],
    }
    return result.model, notes


def _reranker(backbone: GaitModel, work: Path, workers: int) -> tuple[Any, dict[str, Any]]:
    lists = {}
    for name, identities, types, transforms, galleries in (
        ("training", RERANKER_IDENTITIES, RERANKER_TYPES, (None, _Roughen(seed=0)), (GALLERY,)),
        ("validation", VALIDATION_IDENTITIES, synthetic.TYPES, (None,), (GALLERY, GALLERY[:1])),
    ):
        walkers = _walkers(identities, work, workers, types)
        features = []
        for transform in transforms:
            with _bar(f"features for {name}{', augmented' if transform else ''}") as advance:
                features.append(
                    embed_dataset(
                        backbone, walkers, transform=transform, progress=lambda done, total: advance(done / total, "")
                    )
                )
        # The lists that the protocol ranks: a gallery of normal walks, seen from one other view.
        lists[name] = [
            ListSet.build(
                np.concatenate(features),
                np.tile(walkers.identities, len(features)),
                np.tile(walkers.types, len(features)),
                np.tile(walkers.views, len(features)),
                v=30,
                scope="view_pair",
                gallery_types=gallery,
                galleries_per_probe=2,
            )
            for gallery in galleries
        ]
    with _bar("re-ranker") as advance:
        result = train_reranker(
            lists["training"][0],
            lists["validation"][0],
            RERANKER_TRAINING,
            work / "reranker",
            progress=lambda share, report: advance(share, f"loss {report['loss']:.3f}"),
        )
    validations = [
        ListValidation(
            each, beta=RERANKER_TRAINING.beta, k=RERANKER_TRAINING.k,
            limit=RERANKER_TRAINING.validation_lists, seed=RERANKER_TRAINING.seed, device=torch.device("cpu"),
        )
        for each in lists["validation"]
    ]  # fmt: skip
    chosen = shrunk(cast(CarGait, result.model), validations)
    notes = {
        "identities": _span(RERANKER_IDENTITIES),
        "validation_identities": _span(VALIDATION_IDENTITIES),
        "config": asdict(RERANKER_TRAINING),
        "augmentation": {**asdict(RERANKER_AUGMENTATION), "binary": BINARY},
        "best_step": result.step,
        "validation_rank1_initial": round(chosen.rank1[0.0], 2),
        "validation_rank1": round(chosen.rank1[chosen.share], 2),
        "attention_share": chosen.share,
        "validation_rank1_by_share": {str(share): round(rank1, 2) for share, rank1 in chosen.rank1.items()},
    }
    return chosen.model, notes


class _Roughen:
    """Augments one sequence [T, H, W] after the other; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, sequence: Tensor) -> Tensor:
        rough = augment(sequence[None], RERANKER_AUGMENTATION, self._generator)[0]
        binary = torch.rand(1, generator=self._generator).item() < BINARY
        return (rough > 0.5).to(rough.dtype) if binary else rough


def _span(identities: range) -> str:
    return f"{identities.start} to {identities.stop - 1}"


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=1.0, note="")
        yield lambda share, note: progress.update(task, completed=share, note=note)


if __name__ == "__main__":
    main()
