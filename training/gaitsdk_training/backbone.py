"""Training a backbone: triplets or GaitMPL's losses, and cross-entropy, on P x K batches."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gaitsdk.bundle import Bundle
from gaitsdk.errors import OptionError, TrainingError
from gaitsdk.models import GaitModel, create, model_class
from gaitsdk_training.backbone_config import BackboneTraining
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.data import BatchLoader, PxKSampler, SequenceDataset, augment, to_input
from gaitsdk_training.features import check_validation, cross_view_rank1, embed_dataset, state_on_cpu
from gaitsdk_training.finite import refuse
from gaitsdk_training.interruption import StopRequest, ctrl_c_requests_a_stop
from gaitsdk_training.loop import Progress, run_to_the_end
from gaitsdk_training.objective import Objective
from gaitsdk_training.optimising import Optimising
from gaitsdk_training.processes import Processes, joined
from gaitsdk_training.rates import rate_groups
from gaitsdk_training.scalars import check_tensorboard
from gaitsdk_training.schedule import Budget, rate_factor

__all__ = ["BackboneResult", "BackboneTraining", "build_model", "check_input", "load_best", "train_backbone"]

logger = logging.getLogger(__name__)


#: What may change when a run is continued.
_FLEXIBLE = (
    "steps", "max_minutes", "validate_every", "checkpoint_every", "log_every", "device", "workers", "tensorboard",
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
        waited: share of this call's steps that was spent waiting for data, 0..1; in the first of several processes.
    """

    model: GaitModel
    step: int
    rank1: float | None
    steps: int
    minutes: float
    path: Path
    waited: float


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

    Where torchrun (or whoever sets its variables) has started several processes, each calls this with the same
    arguments; they share every batch and give the same result as one (see `processes`). All of them have to see `out`.

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
        TrainingError: features, loss or gradient are not finite (message and log name the batch, the last checkpoint
            stays), the run's folder cannot be written, another process has ended, or too few identities.
        OptionError: an impossible configuration, or `out` belongs to another run. Nothing is written then.
        MissingDependencyError: `tensorboard` without its package.
        TrainingStopped: Ctrl-C; a checkpoint was written, and the same call goes on from there.
    """
    described: dict[str, Any] = {"classes": len(dataset.classes), "sequences": len(dataset)}
    if init is not None:
        architecture = init.manifest.architecture
        config = replace(config, model=architecture.name, options=dict(architecture.options))
        described["init"] = init.fingerprint
    check_input(config, dataset, *(() if validation is None else (validation,)))
    if validation is not None:
        check_validation(validation)
    described |= asdict(config)
    if config.tensorboard:
        check_tensorboard()
    with joined(config.device) as group:
        group.check_batch(config.p * config.k, "BackboneTraining: p x k")
        run = Run(
            out, described, resume=resume, flexible=_FLEXIBLE, added=asdict(BackboneTraining()), writes=group.leads
        )
        # The caller's random state stays as it was; network initialisation and dropout draw from the global one.
        with torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else []):
            loop = _Loop(dataset, config, run, group, validation, init)
            run.begin(config.tensorboard)
            with ctrl_c_requests_a_stop() as stop, contextlib.closing(run):
                return loop.train(progress, stop)


def check_input(config: BackboneTraining, *datasets: SequenceDataset) -> None:
    """Refuses with OptionError data that have another number of maps per frame than the backbone reads."""
    channels = model_class(config.model).input_channels
    for each in datasets:
        if each.channels != channels:
            raise OptionError(
                "the data have another number of maps per frame than the network reads", where=f"model {config.model}",
                got=f"{each.channels}", expected=f"{channels}" + (": limbs, joints, silhouette" * (channels == 3)),
                fix=f"load them with channels={channels}, or train another backbone",
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
        group: Processes,
        validation: SequenceDataset | None,
        init: Bundle | None,
    ) -> None:
        self.dataset, self.config, self.run, self.validation = dataset, config, run, validation
        self.group, self.device = group, group.device
        self.sampler = PxKSampler(dataset.labels, config.p, config.k, config.seed)
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(dataset.classes)).to(self.device)
        if init is not None:  # a bundle has no classifier: its keys are missing, and no others
            self.model.load_state_dict(init.build_backbone().state_dict(), strict=False)
        self.objective = Objective(config, len(dataset.classes), self.model.strips, self.model.dims).to(self.device)
        self.ema = {key: value.clone() for key, value in self.model.state_dict().items()} if config.ema else None
        group.synchronise(self.model)
        self.optimising = Optimising(
            self.model, _optimiser(self.model, config), config.precision, config.clip_norm, group
        )
        self.step, self.best_step, self.validated = 0, 0, -1
        self.best: float | None = None
        self.stepping = 0.0  # seconds in the steps of this call
        elapsed = self._resume()
        self.budget = Budget(config.steps, config.max_minutes, elapsed)

    def train(self, progress: Progress | None, stop: StopRequest) -> BackboneResult:
        if self.step == 0:
            if self.group.leads:
                self.objective.prepare(self.model, self.dataset)
            self.group.copy_first(self.objective)
        config = self.config
        with BatchLoader(
            self.dataset, self.sampler, frames=config.frame_count, sampling=config.sampling, skip=config.frames_skip,
            seed=config.seed, start=self.step, workers=config.workers, share=self.group.share,
        ) as self.batches:  # fmt: skip
            run_to_the_end(self, progress, stop)
        if not self.group.leads:  # the first process has measured
            state = self.run.newest_state()
            self.best, self.best_step = state["best"], state["best_step"]
        waited = self.batches.waited / self.stepping if self.stepping else 0.0
        logger.info("%.1f %% of the time was spent waiting for data", 100.0 * waited)
        minutes = self.budget.elapsed / 60.0
        best = load_best(self.run.path)
        return BackboneResult(best, self.best_step, self.best, self.step, minutes, self.run.path, waited)

    def one_step(self, done: float) -> dict[str, Any]:
        config, started = self.config, time.perf_counter()
        batch, labels, seed = self._batch()
        milestones = [each / config.steps for each in config.milestones or ()]
        rate = config.lr * rate_factor(config.schedule, done, config.warmup, config.final_lr, milestones)
        self.optimising.set_rate(rate)
        self.model.train()
        torch.manual_seed(seed)  # dropout, the same after a resume
        with self.optimising.autocast():
            features, logits = self.model.forward_train(batch)
        features, labels = self.group.gather(features.float()), self.group.gather(labels)
        logits = None if logits is None else self.group.gather(logits.float())
        if not bool((sound := features.detach().isfinite().flatten(1).all(dim=1)).all()):
            self._refuse("the features are not finite", sound)
        self.objective.train()
        loss, report = self.objective(features, logits, labels, done)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._refuse("the loss is not finite")
        norm = self.optimising.gradients(loss)
        if not self.optimising.usable(norm):
            self._refuse("the gradient norm is not finite")
        self.optimising.step()
        self.step += 1
        self._average()
        self.stepping += time.perf_counter() - started
        about = {"lr": rate, "minutes": self.budget.elapsed / 60.0, "waited": self.batches.waited}
        return {"step": self.step, **report, "loss": value, **self.optimising.report(norm), **about}

    def _batch(self) -> tuple[Tensor, Tensor, int]:
        """This process's rows of this step's batch, their labels, and a seed; everything random in it follows from the
        run's seed, the step and, for augmentation and dropout, the process."""
        loaded = next(self.batches)
        seed = loaded.seed + self.group.rank
        batch = to_input(torch.from_numpy(loaded.silhouettes).to(self.device), self.model.input_size)
        batch = augment(batch, self.config.augmentation, torch.Generator().manual_seed(seed))
        return batch, torch.from_numpy(loaded.labels).to(self.device), seed

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
            "scaler": self.optimising.scaler_state(),
        }
        self.run.save(self.step, weights, self.optimising.optimiser.state_dict(), state)

    def _resume(self) -> float:
        """Loads the newest checkpoint; gives the seconds that the run has taken."""
        checkpoint = self.run.newest()
        if checkpoint is None:
            return 0.0
        names = ("model", *(() if self.ema is None else ("ema",)), *(() if self.config.gsam is None else ("memory",)))
        weights, optimiser, state = self.run.load(checkpoint, names)
        self.model.load_state_dict(weights["model"])
        if "memory" in names:
            self.objective.load_state_dict(weights["memory"])
        if self.ema is not None:
            self.ema = {key: value.to(self.device) for key, value in weights["ema"].items()}
        self.optimising.optimiser.load_state_dict(optimiser)
        self.optimising.load_scaler_state(state.get("scaler", {}))
        self.step, self.validated = state["step"], state["validated"]
        self.best, self.best_step = state["best"], state["best_step"]
        logger.info("resumed at step %d", self.step)
        return float(state["elapsed"])

    def _refuse(self, what: str, sound: Tensor | None = None) -> NoReturn:
        """Ends the run for the batch, or for those of its sequences that are not sound, bool [n]."""
        chosen = self.sampler.batch(self.step)
        if sound is not None:
            chosen = chosen[~sound.cpu().numpy()]
        data = self.dataset
        names = [f"{data.identities[i]}/{data.types[i]}/{data.views[i]}" for i in chosen]
        refuse(self.run, self.step + 1, what, names, "look at these sequences, or lower lr, clip_norm or precision")


def build_model(config: BackboneTraining, classes: int) -> GaitModel:
    """The network with new weights, with a classifier of so many identities where it has one and the loss needs it."""
    options = dict(config.options)
    if config.cross_entropy_weight and "num_classes" in model_class(config.model).Options.names():
        options["num_classes"] = classes
    return create(config.model, **options)


def _optimiser(model: nn.Module, config: BackboneTraining) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for factor, parameters in rate_groups(model, config.rates):
        decayed = [each for each in parameters if each.dim() > 1 or config.optimiser != "adamw"]
        others = [each for each in parameters if each.dim() <= 1 and config.optimiser == "adamw"]
        groups.append({"params": decayed, "factor": factor, "weight_decay": config.weight_decay})
        groups.append({"params": others, "factor": factor, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=0.9)
    return torch.optim.Adam(groups, config.lr) if config.optimiser == "adam" else torch.optim.AdamW(groups, config.lr)
