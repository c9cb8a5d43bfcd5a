"""What decides how a re-ranker is trained."""

from __future__ import annotations

from dataclasses import dataclass

from gaitsdk.errors import OptionError
from gaitsdk_training.optimising import PRECISIONS
from gaitsdk_training.schedule import SCHEDULES

#: What can be trained on the lists.
METHODS = ("cargait", "classifier")


@dataclass(frozen=True, kw_only=True)
class RerankerTraining:
    """Defaults: the paper's (section 4.3). Its ablations (Table 5) and its batch sizes: docs/cargait_training.md.

    Attributes:
        method: "cargait", or "classifier" = the paper's baseline (Figure 6), trained by BCE on the same pairs; alpha,
            reduction and label_smoothing do nothing there, beta only in the validation loss.
        width, heads: of CarGait; the width is also that of the classifier's hidden layer.
        identities, sequences: probes per step = identities x sequences of each (paper: 32 x 4).
        negatives: negatives per probe and step; 1 = the paper's triplets, more cost less than as many steps.
        alpha: weight of the cross-entropy, Eq. (2); 0 trains without classifier, and faster.
        beta: damping of correctly ranked triplets, Eq. (1).
        reduction: of Eq. (1) over the triplets of a step: "sum" as printed, or "mean". The cross-entropy is a mean.
        label_smoothing: of the cross-entropy.
        steps, max_minutes: as for the backbone.
        lr, weight_decay, schedule, warmup, final_lr: of AdamW.
        clip_norm: largest gradient norm; None = not clipped.
        precision: of the network's forward pass, as for the backbone.
        validate_every: T_val, steps between validations.
        validation_lists: at most so many lists of D_val are used, drawn with the seed; None = all.
        select: which checkpoint is the best: "loss" = smallest validation ranking loss, as in the paper; "rank1" =
            highest Rank-1 of the re-ranked validation lists, the loss deciding between equals.
        k: length of the list that is re-ranked, for the Rank-1 figures.
        checkpoint_every, log_every: in steps.
        seed, device, tensorboard: as for the backbone.
    """

    method: str = "cargait"
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
    precision: str = "fp32"
    validate_every: int = 10_000
    validation_lists: int | None = 2000
    select: str = "loss"
    k: int = 10
    checkpoint_every: int = 5000
    log_every: int = 50
    seed: int = 0
    device: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        choices = {
            "method": METHODS,
            "schedule": SCHEDULES,
            "reduction": ("sum", "mean"),
            "select": ("loss", "rank1"),
            "precision": tuple(PRECISIONS),
        }
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
            "width",
            "heads",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise OptionError("must be at least 1", where=f"RerankerTraining.{name}", got=getattr(self, name))
        for name in ("lr", "max_minutes", "clip_norm", "beta"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError("must be positive", where=f"RerankerTraining.{name}", got=value)
        if self.method == "cargait" and self.width % self.heads:
            raise OptionError(
                "the heads do not divide the width", where="RerankerTraining",
                got=f"width={self.width}, heads={self.heads}",
                fix="choose a width that is a multiple of heads",
            )  # fmt: skip
        for name in ("alpha", "seed", "weight_decay", "warmup"):
            if not getattr(self, name) >= 0:
                raise OptionError("must not be negative", where=f"RerankerTraining.{name}", got=getattr(self, name))
