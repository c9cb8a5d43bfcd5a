"""Training a backbone: triplets or GaitMPL's losses, and cross-entropy, on P x K batches."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gaitsdk.bundle import Bundle
from gaitsdk.errors import OptionError, TrainingError
from gaitsdk.models import GaitModel, create, model_class
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.data import SAMPLING, Augmentation, BatchLoader, PxKSampler, SequenceDataset, augment, to_input
from gaitsdk_training.features import cross_view_rank1, embed_dataset, pick_device, state_on_cpu
from gaitsdk_training.interruption import StopRequest, ctrl_c_requests_a_stop
from gaitsdk_training.loop import Progress, run_to_the_end
from gaitsdk_training.objective import Objective
from gaitsdk_training.schedule import MULTISTEP, SCHEDULES, Budget, rate_factor

logger = logging.getLogger(__name__)


OPTIMISERS = ("adamw", "adam", "sgd")
#: What may change when a run is continued.
_FLEXIBLE = ("steps", "max_minutes", "validate_every", "checkpoint_every", "log_every", "device", "workers")


@dataclass(frozen=True, kw_only=True)
class BackboneTraining:
    """Everything that decides what comes out of a run, beside the data.

    Attributes:
        model, options: `gaitsdk.models.create(model, **options)`; the number of classes is added where the architecture
            has a classifier and `cross_entropy_weight` > 0.
        p, k: identities per batch, sequences per identity.
        frames, sampling: frames per sequence and how they are chosen (`data.frames`).
        steps: optimiser steps of the whole run.
        max_minutes: ends the run earlier, the schedule following the time; None = no limit.
        optimiser: "adamw", "adam" or "sgd" (momentum 0.9).
        lr, weight_decay: peak learning rate and decay. Neither BN nor bias is decayed under AdamW; Adam adds the decay
            of all weights to their gradient, as does SGD.
        schedule, warmup, final_lr: see `schedule.rate_factor`.
        milestones: steps from which on "multistep" divides the rate by ten; only there. With `max_minutes` they stand
            for their share of `steps`.
        clip_norm: largest gradient norm; None = not clipped.
        margin, triplet_weight: of the triplet loss, or of GaitMPL's in its place.
        drpl: options of `losses.DRPL` in place of the batch-all triplet loss, {} = its defaults; None = without.
        gsam: options of `losses.GSAM` beside it, and "fusion" (Table IX); {} = its defaults; None = without.
        cross_entropy_weight, scale, label_smoothing: of the cross-entropy; 0 trains without classifier.
        augmentation: of the training batches.
        ema: decay of an exponential moving average of the weights, which is then validated and kept; None = none.
        validate_every, validation_frames: steps between validations; first frames used in one (None = all).
        checkpoint_every, log_every: in steps.
        seed: of weights, batches, frames and augmentation.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: threads that load batches ahead; 0 = none.
    """

    model: str = "gaitbase"
    options: dict[str, Any] = field(default_factory=dict)
    p: int = 8
    k: int = 8
    frames: int = 10
    sampling: str = "fixed_unordered"
    steps: int = 10_000
    max_minutes: float | None = None
    optimiser: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    final_lr: float = 0.01
    milestones: Sequence[int] | None = None
    clip_norm: float | None = 10.0
    margin: float = 0.2
    triplet_weight: float = 1.0
    drpl: dict[str, Any] | None = None
    gsam: dict[str, Any] | None = None
    cross_entropy_weight: float = 1.0
    scale: float = 16.0
    label_smoothing: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    ema: float | None = None
    validate_every: int = 500
    validation_frames: int | None = None
    checkpoint_every: int = 500
    log_every: int = 10
    seed: int = 0
    device: str = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        _choose("optimiser", self.optimiser, OPTIMISERS)
        _choose("schedule", self.schedule, (*SCHEDULES, MULTISTEP))
        _choose("sampling", self.sampling, SAMPLING)
        for name in ("p", "k", "frames", "steps", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError("must be at least 1", where=f"BackboneTraining.{name}", got=getattr(self, name))
        for name in ("lr", "max_minutes", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError("must be positive", where=f"BackboneTraining.{name}", got=value)
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise OptionError("must lie between 0 and 1", where="BackboneTraining.ema", got=self.ema)
        steps = list(self.milestones or ())
        if steps != sorted(set(steps)) or any(each < 1 for each in steps):
            raise OptionError(
                "must be rising steps, each at least 1", where="BackboneTraining.milestones", got=self.milestones
            )
        if bool(steps) != (self.schedule == MULTISTEP):
            raise OptionError(
                "milestones and the schedule 'multistep' need each other", where="BackboneTraining.milestones",
                got=f"{self.milestones} with schedule={self.schedule!r}", fix="set both, or neither",
            )  # fmt: skip


@dataclass(frozen=True)
class BackboneResult:
    """What a run gave.

    Attributes:
        model: the best weights, in eval mode on the CPU, with the classifier (`for_inference()` leaves it behind).
        step: when the best weights were reached.
        rank1: their cross-view Rank-1 on the validation identities in percent; None without validation data.
        steps: done in the whole run.
        minutes: taken by the whole run.
        path: the run's folder.
    """

    model: GaitModel
    step: int
    rank1: float | None
    steps: int
    minutes: float
    path: Path


def train_backbone(
    dataset: SequenceDataset,
    config: BackboneTraining,
    out: str | os.PathLike[str],
    *,
    validation: SequenceDataset | None = None,
    init: Bundle | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> BackboneResult:
    """Trains a backbone, or goes on where a run in `out` stopped.

    Args:
        dataset: the training sequences; frames as high as the backbone's input.
        config: see there.
        out: the run's folder (see `checkpoints`).
        validation: sequences of other identities. Without them the last weights are the best.
        init: a bundle whose backbone is trained further; `model` and `options` are taken from it, and its weights
            begin. The classifier is new, as the identities are.
        resume: continue the run in `out`; False refuses a folder that holds one.
        progress: called after every step.

    Returns:
        The best weights by cross-view Rank-1 on the validation identities. A run without `max_minutes` gives the same
        weights whether it was interrupted or not, on the same machine and number of threads.

    Raises:
        TrainingError: the loss is not finite (the last checkpoint stays), or too few identities.
        OptionError: an impossible configuration, or `out` belongs to another run. Nothing is written then.
        TrainingStopped: Ctrl-C; a checkpoint was written, and the same call goes on from there.
    """
    check_input(config)
    described: dict[str, Any] = {"classes": len(dataset.classes), "sequences": len(dataset)}
    if init is not None:
        architecture = init.manifest.architecture
        config = replace(config, model=architecture.name, options=dict(architecture.options))
        described["init"] = init.fingerprint
    described |= asdict(config)
    run = Run(out, described, resume=resume, flexible=_FLEXIBLE)
    # The caller's random state stays as it was; network initialisation and dropout draw from the global one.
    with torch.random.fork_rng(devices=_cuda_devices(config.device)):
        loop = _Loop(dataset, config, run, validation, init)
        run.begin()
        with ctrl_c_requests_a_stop() as stop:
            return loop.train(progress, stop)


def check_input(config: BackboneTraining) -> None:
    """Refuses with OptionError a backbone whose input is more than silhouettes, which is all that the data hold."""
    if model_class(config.model).input_channels != 1:
        raise OptionError(
            "its input is more than silhouettes, and the training data hold only those", where=f"model {config.model}",
            fix="train another backbone, or import trained weights (gaitsdk import-opengait)",
        )  # fmt: skip


def load_best(out: str | os.PathLike[str]) -> GaitModel:
    """The best weights of the run in `out` (eval mode, CPU, with the classifier)."""
    folder = Path(out) / "best"
    try:
        state = json.loads((folder / "state.json").read_text())
        model = create(state["model"], **state["options"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError("no trained weights there", where=str(folder), got=str(error), fix="train first") from error
    return model.eval()


class _Loop:
    """One run: networks, optimiser and position; `train` goes on from where it stands."""

    def __init__(
        self,
        dataset: SequenceDataset,
        config: BackboneTraining,
        run: Run,
        validation: SequenceDataset | None,
        init: Bundle | None,
    ) -> None:
        self.dataset, self.config, self.run, self.validation = dataset, config, run, validation
        self.device = pick_device(config.device)
        self.sampler = PxKSampler(dataset.labels, config.p, config.k, config.seed)
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(dataset.classes)).to(self.device)
        if init is not None:  # a bundle has no classifier: its keys are missing, and no others
            self.model.load_state_dict(init.build_backbone().state_dict(), strict=False)
        self.objective = Objective(config, len(dataset.classes), self.model.strips, self.model.dims).to(self.device)
        self.ema = {key: value.clone() for key, value in self.model.state_dict().items()} if config.ema else None
        self.optimiser = _optimiser(self.model, config)
        self.step, self.best_step, self.validated = 0, 0, -1
        self.best: float | None = None
        elapsed = self._resume()
        self.budget = Budget(config.steps, config.max_minutes, elapsed)

    def train(self, progress: Progress | None, stop: StopRequest) -> BackboneResult:
        if self.step == 0:
            self.objective.prepare(self.model, self.dataset)
        config = self.config
        with BatchLoader(
            self.dataset, self.sampler, frames=config.frames, sampling=config.sampling, seed=config.seed,
            start=self.step, workers=config.workers,
        ) as self.batches:  # fmt: skip
            run_to_the_end(self, progress, stop)
        return BackboneResult(
            load_best(self.run.path), self.best_step, self.best, self.step, self.budget.elapsed / 60.0, self.run.path
        )

    def one_step(self, done: float) -> dict[str, Any]:
        config = self.config
        batch, labels, generator = self._batch()
        milestones = [each / config.steps for each in config.milestones or ()]
        rate = config.lr * rate_factor(config.schedule, done, config.warmup, config.final_lr, milestones)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        torch.manual_seed(int(generator.initial_seed()))  # dropout, the same after a resume
        features, logits = self.model.forward_train(batch)
        self.objective.train()
        loss, report = self.objective(features, logits, labels, done)
        self._check_finite("loss", float(loss.detach()))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._check_finite("gradient norm", norm)
        self.optimiser.step()
        self.step += 1
        self._average()
        about = {"loss": float(loss.detach()), "gradient_norm": norm, "lr": rate, "minutes": self.budget.elapsed / 60.0}
        return {"step": self.step, **report, **about, "waited": self.batches.waited}

    def _batch(self) -> tuple[Tensor, Tensor, torch.Generator]:
        """Batch of this step; everything random in it follows from the seed and the step."""
        loaded = next(self.batches)
        generator = torch.Generator().manual_seed(loaded.seed)
        batch = to_input(torch.from_numpy(loaded.silhouettes).to(self.device), self.model.input_size)
        batch = augment(batch, self.config.augmentation, generator)
        return batch, torch.from_numpy(loaded.labels).to(self.device), generator

    def _average(self) -> None:
        """Moves the averaged weights towards the current ones; faster at first, so that the start is forgotten."""
        if self.ema is None or self.config.ema is None:
            return
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[key].lerp_(value, 1.0 - decay)
            else:
                self.ema[key].copy_(value)

    def validate(self) -> dict[str, Any]:
        """Measures, logs and keeps the weights where they are the best so far."""
        state = state_on_cpu(self.model) if self.ema is None else {k: v.cpu() for k, v in self.ema.items()}
        rank1: float | None = None
        if self.validation is not None:
            current = state_on_cpu(self.model)
            self.model.load_state_dict(state)
            rank1 = cross_view_rank1(
                embed_dataset(self.model, self.validation, frames=self.config.validation_frames), self.validation
            )
            self.model.load_state_dict(current)
            self.run.log(step=self.step, validation_rank1=rank1, minutes=self.budget.elapsed / 60.0)
            logger.info("step %d: validation Rank-1 %.2f %%", self.step, rank1)
        if rank1 is None or self.best is None or rank1 > self.best:
            self.best, self.best_step = rank1, self.step
            about = {"model": self.model.name, "options": self.model.options, "step": self.step, "rank1": rank1}
            self.run.save_best({key: value.contiguous() for key, value in state.items()}, about)
        self.validated = self.step
        return {} if rank1 is None else {"validation_rank1": rank1}

    def checkpoint(self) -> None:
        weights = {"model": state_on_cpu(self.model)}
        if self.ema is not None:
            weights["ema"] = {key: value.cpu().contiguous() for key, value in self.ema.items()}
        if self.config.gsam is not None:
            weights["memory"] = state_on_cpu(self.objective)
        state = {
            "best": self.best,
            "best_step": self.best_step,
            "validated": self.validated,
            "elapsed": self.budget.elapsed,
        }
        self.run.save(self.step, weights, self.optimiser.state_dict(), state)

    def _resume(self) -> float:
        """Loads the newest checkpoint; gives the seconds that the run has taken."""
        checkpoint = self.run.newest()
        if checkpoint is None:
            self.run.trim_log(-1)  # of an attempt that ended before its first checkpoint
            return 0.0
        names = ("model", *(() if self.ema is None else ("ema",)), *(() if self.config.gsam is None else ("memory",)))
        weights, optimiser, state = self.run.load(checkpoint, names)
        self.model.load_state_dict(weights["model"])
        if "memory" in names:
            self.objective.load_state_dict(weights["memory"])
        if self.ema is not None:
            self.ema = {key: value.to(self.device) for key, value in weights["ema"].items()}
        self.optimiser.load_state_dict(optimiser)
        self.step, self.validated = state["step"], state["validated"]
        self.best, self.best_step = state["best"], state["best_step"]
        self.run.trim_log(self.step)
        logger.info("resumed at step %d", self.step)
        return float(state["elapsed"])

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        kept = self.run.newest()
        left = "no checkpoint was written yet" if kept is None else f"{kept} is still good"
        raise TrainingError(
            f"the {what} is not finite",
            where=f"step {self.step + 1}",
            got=value,
            expected="a finite number",
            fix=f"lower lr or clip_norm; {left}",
        )


def build_model(config: BackboneTraining, classes: int) -> GaitModel:
    """The network with new weights, with a classifier of so many identities where it has one and the loss needs it."""
    options = dict(config.options)
    if config.cross_entropy_weight and "num_classes" in model_class(config.model).Options.names():
        options["num_classes"] = classes
    return create(config.model, **options)


def _optimiser(model: nn.Module, config: BackboneTraining) -> torch.optim.Optimizer:
    parameters = [each for each in model.parameters() if each.requires_grad]
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay)
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)
    groups = [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], config.lr)


def _cuda_devices(device: str) -> list[int]:
    chosen = pick_device(device)
    return [chosen.index or 0] if chosen.type == "cuda" else []


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError("unknown value", where=name, got=repr(value), expected=", ".join(choices))
