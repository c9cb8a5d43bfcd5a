"""Trains what a number of a table is measured by, in folders that go on where they were stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.bundle import Bundle
from gaitsdk.errors import OptionError
from gaitsdk.models import GaitModel, model_class
from gaitsdk_training.backbone import BackboneTraining, train_backbone
from gaitsdk_training.configuration import make_config
from gaitsdk_training.data import SequenceDataset
from gaitsdk_training.features import cached_features, pick_device
from gaitsdk_training.recipes.catalogue import merged, read_recipe, recipe_names
from gaitsdk_training.reranker import ListSet, RerankerTraining, train_reranker
from tables.datasets import Data, Progress
from tables.specification import Cell

#: Settings that no recipe has: another's, with these fields changed.
STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "gln-oumvlp": ("gaitset-oumvlp", {"model": "gln", "options": {"size": [128, 88]}}),
}
#: Share of the training identities whose lists choose CarGait's checkpoint (section 4.3).
VALIDATION = 0.1
#: Numbers of the tiny form: every step of the way once, on networks of the tag "tiny".
TINY_BACKBONE: dict[str, Any] = {
    "p": 2, "k": 2, "frames": 4, "steps": 2, "lr": 1e-4, "schedule": "constant", "milestones": None, "warmup": 0.0,
    "validate_every": 2, "checkpoint_every": 2, "log_every": 1, "workers": 0,
}  # fmt: skip
TINY_RERANKER: dict[str, Any] = {
    "width": 16, "heads": 2, "identities": 2, "sequences": 2, "steps": 2, "validate_every": 2, "checkpoint_every": 2,
    "log_every": 1,
}  # fmt: skip
TINY_MORE_STEPS = 2


@dataclass(frozen=True)
class Trained:
    """A backbone: `model` in eval mode on the device, its run's `folder`, the minutes that it took."""

    model: GaitModel
    folder: Path
    minutes: float


@dataclass
class Trainer:
    """Trains, and keeps what it has trained.

    Args:
        data: the data sets.
        work: the runs' folders: DATASET/RECIPE[-hash of what is changed]/seed-N/[RERANKER[-hash]]/.
        tiny: everything at its smallest.
        device: "auto", "cpu" or "cuda:N".
        bundles: BACKBONE-DATASET.gait here are taken in the place of training by the recipe as it is; None = none.
        progress: see `Data`.
    """

    data: Data
    work: Path
    tiny: bool = False
    device: str = "auto"
    bundles: Path | None = None
    progress: Callable[[str], Progress | None] = lambda title: None

    def __post_init__(self) -> None:
        self._backbones: dict[Path, Trained] = {}
        self._features: dict[tuple[Path, str], NDArray[np.float32]] = {}
        self._rerankers: dict[Path, tuple[Any, float]] = {}

    def backbone(self, cell: Cell, seed: int) -> Trained:
        """The cell's backbone, trained or read from a bundle."""
        folder = self._folder(cell, seed)
        if folder not in self._backbones:
            # One network at a time: a table's networks together may not fit into the memory.
            self._backbones = {folder: self._obtain(cell, seed, folder)}
        return self._backbones[folder]

    def part(self, cell: Cell, part: str, model: GaitModel) -> SequenceDataset:
        """The sequences of the cell's data set for that network."""
        size = int(model_class(model.name).Options.parse(model.name, model.options).size[0])
        return self.data.part(cell.dataset, part, size, model.input_channels)

    def features(self, cell: Cell, seed: int, part: str) -> NDArray[np.float32]:
        """F [n, s, d] of the "train" or "test" sequences, kept beside the run."""
        trained = self.backbone(cell, seed)
        key = trained.folder, part
        if key not in self._features:
            path = trained.folder / f"features-{part}.npy"
            sequences = self.part(cell, part, trained.model)
            progress = self.progress(f"embedding {cell.dataset} ({part})")
            self._features = {
                **{k: v for k, v in self._features.items() if k[0] == trained.folder},
                key: cached_features(trained.model, sequences, path, progress=progress),
            }
        return self._features[key]

    def reranker(self, cell: Cell, seed: int) -> tuple[Any, float]:
        """The cell's trained re-ranker (a network that gives distances), and its minutes."""
        trained = self.backbone(cell, seed)
        lists = {} if cell.v == Cell.v else {"v": cell.v}
        folder = trained.folder / _slug("cargait", {**_changed(cell), **lists})
        if folder not in self._rerankers:
            config = reranking(cell, seed, tiny=self.tiny, device=self.device)
            steps = self._steps(f"{folder.name} over {cell.backbone}")
            result = train_reranker(*self._lists(cell, seed, trained), config, folder, progress=steps)
            self._rerankers[folder] = result.model, result.minutes
        return self._rerankers[folder]

    def _lists(self, cell: Cell, seed: int, trained: Trained) -> list[ListSet]:
        """D and D_val: the training identities, the last tenth of whom choose the checkpoint (section 4.3)."""
        sequences, maps = self.part(cell, "train", trained.model), self.features(cell, seed, "train")
        built = []
        for part in sequences.split(VALIDATION):
            rows = np.flatnonzero(np.isin(sequences.identities, part.classes))
            names = sequences.identities[rows], sequences.types[rows], sequences.views[rows]
            built.append(ListSet.build(maps[rows], *names, v=cell.v, seed=seed))
        return built

    def _folder(self, cell: Cell, seed: int) -> Path:
        given = self._bundle(cell)
        changed = {
            **cell.training,
            **({"more_steps": cell.more_steps} if cell.more_steps else {}),
            **({} if given is None else {"bundle": given.fingerprint}),
        }
        return self.work / cell.dataset / _slug(cell.backbone, changed) / f"seed-{seed}"

    def _obtain(self, cell: Cell, seed: int, folder: Path) -> Trained:
        given = self._bundle(cell)
        if cell.more_steps:
            return self._prolonged(cell, seed, folder, given)
        if given is not None:
            return Trained(given.build_backbone().to(pick_device(self.device)).eval(), folder, 0.0)
        names, init, minutes = phases(cell), None, 0.0
        for name in names:
            where = folder if name == names[-1] else folder / "phase1"
            config = configuration(name, cell, seed, tiny=self.tiny, device=self.device)
            trained = self._train(name, cell, config, where, init)
            minutes += trained.minutes
            if name != names[-1]:
                init = Bundle.create(where / "model.gait", backbone=trained.model, licence="not stated", overwrite=True)
        return Trained(trained.model, folder, minutes)

    def _prolonged(self, cell: Cell, seed: int, folder: Path, given: Bundle | None) -> Trained:
        """The same training with more steps: of a bundle from its weights on, else the run goes on in a copy of it."""
        name = phases(cell)[-1]
        config = configuration(name, cell, seed, tiny=self.tiny, device=self.device)
        more = TINY_MORE_STEPS if self.tiny else cell.more_steps
        if given is not None:
            return self._train(name, cell, replace(config, steps=more), folder, given)
        before = self.backbone(replace(cell, more_steps=0), seed).folder
        if not folder.exists():
            unfinished = folder.with_name(f".{folder.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(before, unfinished, ignore=shutil.ignore_patterns("features-*", "cargait*", ".features*"))
            unfinished.rename(folder)
        return self._train(name, cell, replace(config, steps=config.steps + more), folder, None)

    def _train(self, name: str, cell: Cell, config: BackboneTraining, where: Path, init: Bundle | None) -> Trained:
        model = model_class(config.model)
        size = model.Options.parse(config.model, config.options).size[0]
        sequences = self.data.part(cell.dataset, "train", int(size), model.input_channels)
        result = train_backbone(sequences, config, where, init=init, progress=self._steps(f"{name}, {where.name}"))
        ready = result.model.for_inference().to(pick_device(self.device))
        return Trained(ready, where, result.minutes)

    def _bundle(self, cell: Cell) -> Bundle | None:
        path = None if self.bundles is None or cell.training else self.bundles / f"{cell.backbone}-{cell.dataset}.gait"
        if path is None or not path.exists():
            return None
        bundle = Bundle.load(path)
        if bundle.manifest.architecture.name != cell.backbone:
            raise OptionError(
                "the bundle's network is another one", where=str(path), got=bundle.manifest.architecture.name,
                expected=cell.backbone, fix="name it BACKBONE-DATASET.gait",
            )  # fmt: skip
        return bundle

    def _steps(self, title: str) -> Callable[[float, dict[str, Any]], None] | None:
        update = self.progress(title)
        return None if update is None else lambda share, report: update(round(1000 * min(share, 1.0)), 1000)


def phases(cell: Cell) -> list[str]:
    """The recipes of the cell's backbone, one after the other."""
    name = f"{cell.backbone}-{cell.dataset}"
    return [name, f"{name}-phase2"] if f"{name}-phase2" in recipe_names() else [name]


def configuration(name: str, cell: Cell, seed: int, *, tiny: bool = False, device: str = "auto") -> BackboneTraining:
    """The training of one phase: the recipe, the cell's changes, and with `tiny` everything at its smallest.

    Raises:
        OptionError: no such recipe, or an unknown or impossible field.
    """
    base, changed = STAND_INS.get(name, (name, {}))
    values = merged({**read_recipe(base), **changed}, cell.training)
    if tiny:
        values = {**values, **TINY_BACKBONE, "options": dict(model_class(cell.backbone).TAGS["tiny"])}
    return make_config(BackboneTraining, {**values, "seed": seed, "device": device}, name)


def reranking(cell: Cell, seed: int, *, tiny: bool = False, device: str = "auto") -> RerankerTraining:
    """The training of the cell's re-ranker: the recipe for its backbone, and its changes. Raises: OptionError."""
    values = merged(read_recipe(f"cargait-{cell.backbone}"), _changed(cell))
    if tiny:
        values = {**values, **TINY_RERANKER}
    return make_config(RerankerTraining, {**values, "seed": seed, "device": device}, "re-ranker")


def _changed(cell: Cell) -> dict[str, Any]:
    return {**cell.reranking, **({} if cell.reranker == "cargait" else {"method": cell.reranker})}


def _slug(name: str, changed: Mapping[str, Any]) -> str:
    """A folder's name: the same for the same settings, whichever table they come from."""
    digest = hashlib.sha256(json.dumps(dict(changed), sort_keys=True).encode()).hexdigest()
    return f"{name}-{digest[:8]}" if changed else name
