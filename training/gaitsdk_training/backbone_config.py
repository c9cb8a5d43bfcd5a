"""What decides how a backbone is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gaitsdk.errors import OptionError
from gaitsdk_training.data import SAMPLING, SKIP, UNFIXED_SAMPLING, Augmentation
from gaitsdk_training.optimising import PRECISIONS
from gaitsdk_training.rates import check_rates
from gaitsdk_training.schedule import MULTISTEP, SCHEDULES

OPTIMISERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class BackboneTraining:
    """Everything that decides what comes out of a run, beside the data.

    Attributes:
        model, options: `gaitsdk.models.create(model, **options)`; the number of classes is added where the architecture
            has a classifier and `cross_entropy_weight` > 0.
        p, k: identities per batch, sequences per identity.
        frames, sampling: frames per sequence and how they are chosen (`data.frames`).
        frames_min, frames_max: in place of `frames` where the sampling is unfixed: each batch has another number of
            frames between them.
        frames_skip: frames that ordered sampling leaves out of its window at random; 0 takes frames in a row.
        steps: optimiser steps of the whole run.
        max_minutes: ends the run earlier, the schedule following the time; None = no limit.
        optimiser: "adamw", "adam" or "sgd" (momentum 0.9).
        lr, weight_decay: peak learning rate and decay. Neither BN nor bias is decayed under AdamW; Adam adds the decay
            of all weights to their gradient, as does SGD.
        rates: factors on the learning rate by the first parts of parameters' names (`rates.rate_groups`); None = 1.
        schedule, warmup, final_lr: see `schedule.rate_factor`.
        milestones: steps from which on "multistep" divides the rate by ten; only there. With `max_minutes` they stand
            for their share of `steps`.
        clip_norm: largest gradient norm; None = not clipped.
        precision: what the network computes in, "fp32", "bf16" or "fp16" (GPUs only); weights, losses, GSAM's memory
            and the optimiser stay in float32.
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
        tensorboard: write the log's numbers as TensorBoard events, too.
    """

    model: str = "gaitbase"
    options: dict[str, Any] = field(default_factory=dict)
    p: int = 8
    k: int = 8
    frames: int = 10
    frames_min: int | None = None
    frames_max: int | None = None
    frames_skip: int = SKIP
    sampling: str = "fixed_unordered"
    steps: int = 10_000
    max_minutes: float | None = None
    optimiser: str = "adamw"
    lr: float = 1e-3
    rates: dict[str, float] | None = None
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.05
    final_lr: float = 0.01
    milestones: Sequence[int] | None = None
    clip_norm: float | None = 10.0
    precision: str = "fp32"
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
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _choose("optimiser", self.optimiser, OPTIMISERS)
        _choose("schedule", self.schedule, (*SCHEDULES, MULTISTEP))
        _choose("precision", self.precision, tuple(PRECISIONS))
        _choose("sampling", self.sampling, (*SAMPLING, *UNFIXED_SAMPLING))
        self._check_frames()
        check_rates(self.rates)
        for name in ("p", "k", "frames", "steps", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError("must be at least 1", where=f"BackboneTraining.{name}", got=getattr(self, name))
        for name in ("seed", "workers", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise OptionError("must not be negative", where=f"BackboneTraining.{name}", got=getattr(self, name))
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

    @property
    def frame_count(self) -> int | tuple[int, int]:
        """Frames per sequence as `data.BatchLoader` takes them: a number, or (least, most) of unfixed sampling."""
        return self.frames if self.frames_min is None or self.frames_max is None else (self.frames_min, self.frames_max)

    def _check_frames(self) -> None:
        least, most = self.frames_min, self.frames_max
        if self.sampling in UNFIXED_SAMPLING:
            if least is None or most is None or not 1 <= least <= most:
                raise OptionError(
                    "unfixed sampling needs a range", where="BackboneTraining.frames_min, frames_max",
                    got=f"{least} to {most}", expected="1 <= frames_min <= frames_max", fix="set both",
                )  # fmt: skip
        elif least is not None or most is not None:
            raise OptionError(
                "is for unfixed sampling", where="BackboneTraining.frames_min, frames_max",
                got=f"{least} to {most} with sampling={self.sampling!r}", expected=" or ".join(UNFIXED_SAMPLING),
                fix="set frames, or another sampling",
            )  # fmt: skip
        if self.frames_skip < 0:
            raise OptionError("must not be negative", where="BackboneTraining.frames_skip", got=self.frames_skip)


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError("unknown value", where=name, got=repr(value), expected=", ".join(choices))
