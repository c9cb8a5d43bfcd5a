"""Training CarGait, or the baseline it is compared with, on a frozen backbone's features (sections 3, 4.3 and 4.5)."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from gaitsdk.errors import InputError, TrainingError
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_training.checkpoints import Run
from gaitsdk_training.data import PxKSampler
from gaitsdk_training.features import state_on_cpu
from gaitsdk_training.finite import refuse
from gaitsdk_training.interruption import StopRequest, ctrl_c_requests_a_stop
from gaitsdk_training.list_validation import ListValidation
from gaitsdk_training.lists import ListSet, RankedLists, build_lists
from gaitsdk_training.loop import Progress, run_to_the_end
from gaitsdk_training.optimising import Optimising
from gaitsdk_training.processes import Processes, joined
from gaitsdk_training.reranker_config import RerankerTraining
from gaitsdk_training.reranker_methods import create_method
from gaitsdk_training.scalars import check_tensorboard
from gaitsdk_training.schedule import Budget, rate_factor

__all__ = ["ListSet", "RankedLists", "RerankerResult", "RerankerTraining", "build_lists", "load_best", "train_reranker"]

logger = logging.getLogger(__name__)


_FLEXIBLE = ("steps", "max_minutes", "checkpoint_every", "log_every", "device", "tensorboard")
#: Networks by the name in `best/state.json`.
_NETWORKS: dict[str, type[CarGait] | type[PairClassifier]] = {each.name: each for each in (CarGait, PairClassifier)}


@dataclass(frozen=True)
class RerankerResult:
    """What a run gave.

    Attributes:
        model: the best network, in eval mode on the CPU; a CarGait with its classifier (`for_inference()` leaves it
            behind), or a PairClassifier.
        step: of the best checkpoint; 0 = no training step beat the untrained network on validation, which is the
            shortlist's own order for CarGait, and any order for the classifier.
        loss, rank1: its validation ranking loss (mean per triplet) and Rank-1 of the first k in percent.
        initial_loss, initial_rank1: the same before re-ranking.
        steps, minutes, path: of the whole run.
    """

    model: CarGait | PairClassifier
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
    """Trains CarGait (or `config.method`) on D, keeping the checkpoint that is best on D_val.

    The untrained CarGait keeps the shortlist's distances and takes part as step 0, so on the validation lists the
    result is never worse than no re-ranking. The classifier has no such start and may be.

    Args:
        training: D.
        validation: D_val, lists of other identities.
        config: see there.
        out: the run's folder (see `checkpoints`).
        resume, progress: as for `train_backbone`; so are several processes.

    Raises:
        TrainingError: a loss or gradient is not finite (message and log name the probes), the run's folder cannot be
            written, another process has ended, or fewer identities than a step takes.
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
    if config.tensorboard:
        check_tensorboard()
    with joined(config.device) as group:
        group.check_batch(config.identities * config.sequences, "RerankerTraining: identities x sequences")
        run = Run(
            out, described, resume=resume, flexible=_FLEXIBLE, added=asdict(RerankerTraining()), writes=group.leads
        )
        with torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else []):
            loop = _Loop(training, validation, config, run, group)
            run.begin(config.tensorboard)
            with ctrl_c_requests_a_stop() as stop, contextlib.closing(run):
                return loop.train(progress, stop)


def load_best(out: str | os.PathLike[str]) -> CarGait | PairClassifier:
    """The best network of the run in `out` (eval mode, CPU; a CarGait with its classifier)."""
    folder = Path(out) / "best"
    try:
        state = json.loads((folder / "state.json").read_text())
        model = _NETWORKS[state.get("network", CarGait.name)](**state["options"])
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
        self, training: ListSet, validation: ListSet, config: RerankerTraining, run: Run, group: Processes
    ) -> None:
        device = group.device
        self.config, self.run, self.group, self.device = config, run, group, device
        self.names = training.labels
        self.lists = training.lists
        self.features = torch.from_numpy(training.features).to(device)
        labels = np.unique(training.labels, return_inverse=True)[1].astype(np.int64)
        self.sampler = _sampler(labels[self.lists.probes], config)
        self.validation = ListValidation(
            validation, beta=config.beta, k=config.k, limit=config.validation_lists, seed=config.seed, device=device
        )
        torch.manual_seed(config.seed)
        self.method = create_method(config, self.features, torch.from_numpy(labels).to(device), group)
        self.model = self.method.model
        optimiser = torch.optim.AdamW(self.model.parameters(), config.lr, weight_decay=config.weight_decay)
        self.optimising = Optimising(self.model, optimiser, config.precision, config.clip_norm, group)
        self.step = 0
        #: loss and Rank-1 of the shortlist; step, loss and Rank-1 of the best validation
        self.initial: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.validated = -1
        elapsed = self._resume()
        self.budget = Budget(config.steps, config.max_minutes, elapsed)

    def train(self, progress: Progress | None, stop: StopRequest) -> RerankerResult:
        if not self.best and self.group.leads:
            self.validate()
        run_to_the_end(self, progress, stop)
        if not self.group.leads:  # the first process has measured
            state = self.run.newest_state()
            self.initial, self.best = state["initial"], state["best"]
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
        self.optimising.set_rate(rate)
        self.model.train()
        probes, others = self._sample()
        loss, distances, terms = self.method.loss(probes, others, self.optimising.autocast)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._refuse("the loss is not finite")
        norm = self.optimising.gradients(loss)
        if not self.optimising.usable(norm):
            self._refuse("the gradient norm is not finite")
        self.optimising.step()
        self.step += 1
        return {
            "step": self.step,
            "loss": value,
            **{name: float(term.detach()) for name, term in terms.items()},
            "ranked_right": float((distances[:, 1:] >= distances[:, :1]).float().mean()),
            **self.optimising.report(norm),
            "lr": rate,
            "minutes": self.budget.elapsed / 60.0,
        }

    def _sample(self) -> tuple[Tensor, Tensor]:
        """This process's probes [B] and their others [B, 1 + negatives], the positive first; drawn from the seed and
        the step."""
        chosen = self.sampler.batch(self.step)
        rng = np.random.default_rng((self.config.seed, self.step, 2))
        positive, candidates = self.lists.positive[chosen], self.lists.candidates[chosen]
        picks = np.empty((len(chosen), 1 + self.config.negatives), np.int64)
        picks[:, 0] = np.where(positive, rng.random(positive.shape), -1.0).argmax(axis=1)
        for column in range(1, picks.shape[1]):
            # Independent draws: with few negatives in a list, one may come twice.
            picks[:, column] = np.where(positive, -1.0, rng.random(positive.shape)).argmax(axis=1)
        others = np.take_along_axis(candidates, picks, axis=1)
        rank, world = self.group.share
        probes, others = self.lists.probes[chosen][rank::world], others[rank::world]
        return torch.from_numpy(probes).to(self.device), torch.from_numpy(others).to(self.device)

    def validate(self) -> dict[str, float]:
        """Measures, logs and keeps the weights where they are the best so far."""
        figures = self.validation.measure(self.model)
        figures["step"] = self.step
        self.run.log(**{"step": self.step, **{f"validation_{key}": figures[key] for key in ("loss", "rank1")}})
        logger.info("step %d: validation loss %.4f, Rank-1 %.2f %%", self.step, figures["loss"], figures["rank1"])
        self.initial = self.initial or self.validation.of_shortlist()
        if not self.best or self._key(figures) < self._key(self.best):
            self.best = figures
            state = {"network": self.model.name, "options": self.model.options, **figures}
            self.run.save_best(state_on_cpu(self.model), state)
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
            "scaler": self.optimising.scaler_state(),
        }
        optimiser = self.optimising.optimiser.state_dict()
        self.run.save(self.step, {"model": state_on_cpu(self.model)}, optimiser, state)

    def _resume(self) -> float:
        checkpoint = self.run.newest()
        if checkpoint is None:
            return 0.0
        weights, optimiser, state = self.run.load(checkpoint, ("model",))
        self.model.load_state_dict(weights["model"])
        self.optimising.optimiser.load_state_dict(optimiser)
        self.optimising.load_scaler_state(state.get("scaler", {}))
        self.step, self.validated = state["step"], state["validated"]
        self.initial, self.best = state["initial"], state["best"]
        logger.info("resumed at step %d", self.step)
        return float(state["elapsed"])

    def _refuse(self, what: str) -> NoReturn:
        probes = self.lists.probes[self.sampler.batch(self.step)]
        names = [f"probe {each} of {self.names[each]}" for each in probes]
        refuse(self.run, self.step + 1, what, names, "look at the features of these, lower lr, or set clip_norm")
