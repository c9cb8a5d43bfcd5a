"""Training CarGait on a frozen backbone's features (sections 3 and 4.3 of the paper)."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from gaitsdk.errors import InputError, OptionError, TrainingError
from gaitsdk.models.cargait import CarGait
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.data import PxKSampler
from gaitsdk_training.features import pick_device, state_on_cpu
from gaitsdk_training.interruption import StopRequest, ctrl_c_requests_a_stop
from gaitsdk_training.list_validation import ListValidation
from gaitsdk_training.lists import ListSet, RankedLists, build_lists
from gaitsdk_training.loop import Progress, run_to_the_end
from gaitsdk_training.losses import cross_entropy, ranking_loss
from gaitsdk_training.schedule import SCHEDULES, Budget, rate_factor

__all__ = ["ListSet", "RankedLists", "RerankerResult", "RerankerTraining", "build_lists", "load_best", "train_reranker"]

logger = logging.getLogger(__name__)


_FLEXIBLE = ("steps", "max_minutes", "checkpoint_every", "log_every", "device")


@dataclass(frozen=True, kw_only=True)
class RerankerTraining:
    """Defaults: the paper's (section 4.3).

    Attributes:
        width, heads: of CarGait.
        identities, sequences: probes per step = identities x sequences of each (paper: 32 x 4).
        negatives: negatives per probe and step; 1 = the paper's triplets, more cost less than as many steps.
        alpha: weight of the cross-entropy, Eq. (2); 0 trains without classifier, and faster.
        beta: damping of correctly ranked triplets, Eq. (1).
        reduction: of Eq. (1) over the triplets of a step: "sum" as printed, or "mean". The cross-entropy is a mean.
        label_smoothing: of the cross-entropy.
        steps, max_minutes: as for the backbone.
        lr, weight_decay, schedule, warmup, final_lr: of AdamW.
        clip_norm: largest gradient norm; None = not clipped.
        validate_every: T_val, steps between validations.
        validation_lists: at most so many lists of D_val are used, drawn with the seed; None = all.
        select: which checkpoint is the best: "loss" = smallest validation ranking loss, as in the paper; "rank1" =
            highest Rank-1 of the re-ranked validation lists, the loss deciding between equals.
        k: length of the list that is re-ranked, for the Rank-1 figures.
        checkpoint_every, log_every: in steps.
        seed, device: as for the backbone.
    """

    width: int = 256
    heads: int = 8
    identities: int = 32
    sequences: int = 4
    negatives: int = 1
    alpha: float = 0.01
    beta: float = 0.1
    reduction: str = "sum"
    label_smoothing: float = 0.0
    steps: int = 100_000
    max_minutes: float | None = None
    lr: float = 1e-5
    weight_decay: float = 1e-2
    schedule: str = "constant"
    warmup: float = 0.0
    final_lr: float = 0.0
    clip_norm: float | None = None
    validate_every: int = 10_000
    validation_lists: int | None = 2000
    select: str = "loss"
    k: int = 10
    checkpoint_every: int = 5000
    log_every: int = 50
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        choices = {"schedule": SCHEDULES, "reduction": ("sum", "mean"), "select": ("loss", "rank1")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError("unknown value", where=name, got=repr(getattr(self, name)), expected=", ".join(known))
        counts = (
            "identities",
            "sequences",
            "negatives",
            "steps",
            "validate_every",
            "checkpoint_every",
            "log_every",
            "k",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise OptionError("must be at least 1", where=f"RerankerTraining.{name}", got=getattr(self, name))
        for name in ("lr", "max_minutes", "clip_norm", "beta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError("must be positive", where=f"RerankerTraining.{name}", got=value)


@dataclass(frozen=True)
class RerankerResult:
    """What a run gave.

    Attributes:
        model: the best CarGait, in eval mode on the CPU, with its classifier (`for_inference()` leaves it behind).
        step: of the best checkpoint; 0 = no training step beat the shortlist's own order on validation.
        loss, rank1: its validation ranking loss (mean per triplet) and Rank-1 of the first k in percent.
        initial_loss, initial_rank1: the same before re-ranking.
        steps, minutes, path: of the whole run.
    """

    model: CarGait
    step: int
    loss: float
    rank1: float
    initial_loss: float
    initial_rank1: float
    steps: int
    minutes: float
    path: Path


def train_reranker(
    training: ListSet,
    validation: ListSet,
    config: RerankerTraining,
    out: str | os.PathLike[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> RerankerResult:
    """Trains CarGait on D, keeping the checkpoint that is best on D_val.

    The untrained CarGait keeps the shortlist's distances and takes part as step 0, so on the validation lists the
    result is never worse than no re-ranking.

    Args:
        training: D.
        validation: D_val, lists of other identities.
        config: see there.
        out: the run's folder (see `checkpoints`).
        resume, progress: as for `train_backbone`.

    Raises:
        TrainingError: the loss is not finite, or fewer identities than a step takes.
        InputError: D and D_val have different feature shapes. OptionError: the folder of another run.
        TrainingStopped: Ctrl-C; a checkpoint was written, and the same call goes on from there.
    """
    if training.features.shape[1:] != validation.features.shape[1:]:
        raise InputError(
            "training and validation features differ in shape",
            where="train_reranker",
            got=f"{training.features.shape[1:]} and {validation.features.shape[1:]}",
        )
    described = {**asdict(config), "lists": len(training.lists), "validation": len(validation.lists)}
    run = Run(out, described, resume=resume, flexible=_FLEXIBLE)
    device = pick_device(config.device)
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        loop = _Loop(training, validation, config, run, device)
        run.begin()
        with ctrl_c_requests_a_stop() as stop:
            return loop.train(progress, stop)


def load_best(out: str | os.PathLike[str]) -> CarGait:
    """The best CarGait of the run in `out` (eval mode, CPU, with its classifier)."""
    folder = Path(out) / "best"
    try:
        model = CarGait(**json.loads((folder / "state.json").read_text())["options"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError("no trained weights there", where=str(folder), got=str(error), fix="train first") from error
    return model.eval()


def _sampler(labels: NDArray[np.int64], config: RerankerTraining) -> PxKSampler:
    count = len(np.unique(labels))
    if count < config.identities:
        raise TrainingError(
            "fewer identities than a step takes",
            where="train_reranker",
            got=f"lists of {count} identities",
            expected=f"at least identities={config.identities}",
            fix="lower identities (and raise sequences), or train on more people",
        )
    return PxKSampler(labels, config.identities, config.sequences, config.seed)


class _Loop:
    """One run: network, optimiser and position; `train` goes on from where it stands."""

    def __init__(
        self, training: ListSet, validation: ListSet, config: RerankerTraining, run: Run, device: torch.device
    ) -> None:
        self.config, self.run, self.device = config, run, device
        self.lists = training.lists
        self.features = torch.from_numpy(training.features).to(device)
        classes, labels = np.unique(training.labels, return_inverse=True)
        self.labels = torch.from_numpy(labels.astype(np.int64)).to(device)
        self.sampler = _sampler(labels[self.lists.probes], config)
        self.validation = ListValidation(
            validation, beta=config.beta, k=config.k, limit=config.validation_lists, seed=config.seed, device=device
        )
        torch.manual_seed(config.seed)
        count = len(classes) if config.alpha else None
        self.model = CarGait(training.features.shape[2], config.width, config.heads, count).to(device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), config.lr, weight_decay=config.weight_decay)
        self.step = 0
        #: step, loss and Rank-1 of the first and of the best validation
        self.initial: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.validated = -1
        elapsed = self._resume()
        self.budget = Budget(config.steps, config.max_minutes, elapsed)

    def train(self, progress: Progress | None, stop: StopRequest) -> RerankerResult:
        if not self.best:
            self.validate()
        run_to_the_end(self, progress, stop)
        return RerankerResult(
            model=load_best(self.run.path),
            step=int(self.best["step"]),
            loss=self.best["loss"],
            rank1=self.best["rank1"],
            initial_loss=self.initial["loss"],
            initial_rank1=self.initial["rank1"],
            steps=self.step,
            minutes=self.budget.elapsed / 60.0,
            path=self.run.path,
        )

    def one_step(self, done: float) -> dict[str, Any]:
        config = self.config
        rate = config.lr * rate_factor(config.schedule, done, config.warmup, config.final_lr)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        probes, others = self._sample()
        if config.alpha:
            distances, entropy = self._conditioned(probes, others)
        else:
            distances, entropy = self.model(self.features[probes], self.features[others]), None
        positive = distances[:, :1].expand(-1, config.negatives)
        ranking = ranking_loss(positive, distances[:, 1:], config.beta, config.reduction)
        loss = ranking if entropy is None else ranking + config.alpha * entropy
        self._check_finite("loss", float(loss.detach()))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._check_finite("gradient norm", norm)
        self.optimiser.step()
        self.step += 1
        report = {
            "step": self.step,
            "loss": float(loss.detach()),
            "ranking": float(ranking.detach()),
            "ranked_right": float((distances[:, 1:] >= positive).float().mean()),
            "gradient_norm": norm,
            "lr": rate,
            "minutes": self.budget.elapsed / 60.0,
        }
        return report if entropy is None else {**report, "cross_entropy": float(entropy.detach())}

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Probes [B] and their others [B, 1 + negatives], the positive first; drawn from the seed and the step."""
        chosen = self.sampler.batch(self.step)
        rng = np.random.default_rng((self.config.seed, self.step, 2))
        positive, candidates = self.lists.positive[chosen], self.lists.candidates[chosen]
        picks = np.empty((len(chosen), 1 + self.config.negatives), np.int64)
        picks[:, 0] = np.where(positive, rng.random(positive.shape), -1.0).argmax(axis=1)
        for column in range(1, picks.shape[1]):
            # Independent draws: with few negatives in a list, one may come twice.
            picks[:, column] = np.where(positive, -1.0, rng.random(positive.shape)).argmax(axis=1)
        others = np.take_along_axis(candidates, picks, axis=1)
        return torch.from_numpy(self.lists.probes[chosen]).to(self.device), torch.from_numpy(others).to(self.device)

    def _conditioned(self, probes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [B, 1 + negatives] and the cross-entropy over both conditioned maps of every pair."""
        count = others.shape[1]
        first, second = probes.repeat_interleave(count), others.reshape(-1)
        attended_p, attended_c = self.model.attend(self.features[first], self.features[second])
        distances = torch.linalg.vector_norm(attended_p - attended_c, dim=-1).mean(dim=-1).reshape(-1, count)
        logits = self.model.classify(torch.cat([attended_p, attended_c]))
        labels = self.labels[torch.cat([first, second])]
        return distances, cross_entropy(logits, labels, scale=1.0, label_smoothing=self.config.label_smoothing)

    def validate(self) -> dict[str, float]:
        """Measures, logs and keeps the weights where they are the best so far."""
        figures = self.validation.measure(self.model)
        figures["step"] = self.step
        self.run.log(**{"step": self.step, **{f"validation_{key}": figures[key] for key in ("loss", "rank1")}})
        logger.info("step %d: validation loss %.4f, Rank-1 %.2f %%", self.step, figures["loss"], figures["rank1"])
        self.initial = self.initial or figures
        if not self.best or self._key(figures) < self._key(self.best):
            self.best = figures
            self.run.save_best(state_on_cpu(self.model), {"options": self.model.options, **figures})
        self.validated = self.step
        return {f"validation_{key}": figures[key] for key in ("loss", "rank1")}

    def _key(self, figures: dict[str, float]) -> tuple[float, float]:
        """Smaller is better."""
        loss, rank1 = figures["loss"], -figures["rank1"]
        return (loss, rank1) if self.config.select == "loss" else (rank1, loss)

    def checkpoint(self) -> None:
        state = {
            "initial": self.initial,
            "best": self.best,
            "validated": self.validated,
            "elapsed": self.budget.elapsed,
        }
        self.run.save(self.step, {"model": state_on_cpu(self.model)}, self.optimiser.state_dict(), state)

    def _resume(self) -> float:
        checkpoint = self.run.newest()
        if checkpoint is None:
            self.run.trim_log(-1)  # of an attempt that ended before its first checkpoint
            return 0.0
        weights, optimiser, state = self.run.load(checkpoint, ("model",))
        self.model.load_state_dict(weights["model"])
        self.optimiser.load_state_dict(optimiser)
        self.step, self.validated = state["step"], state["validated"]
        self.initial, self.best = state["initial"], state["best"]
        self.run.trim_log(self.step)
        logger.info("resumed at step %d", self.step)
        return float(state["elapsed"])

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is not finite",
                where=f"step {self.step + 1}",
                got=value,
                expected="a finite number",
                fix=f"lower lr or set clip_norm; {self.run.path / 'best'} is still good",
            )
