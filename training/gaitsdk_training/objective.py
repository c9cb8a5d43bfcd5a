"""What a backbone is trained to make small: triplets or GaitMPL's losses on F, cross-entropy on the classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gaitsdk.errors import OptionError
from gaitsdk.models import GaitModel
from gaitsdk_training.data import SequenceDataset, to_input
from gaitsdk_training.losses import DRPL, GSAM, GaitMPLLoss, cross_entropy, triplet_info

if TYPE_CHECKING:
    from gaitsdk_training.backbone import BackboneTraining

_BATCH = 16  # sequences per call of the pass that fills the memory; the backbone chunks their frames itself


class Objective(nn.Module):
    """The losses of one run, weighted. Its state dict is GSAM's memory, empty without.

    Args:
        config: `triplet_weight` times the batch-all triplet loss, or GaitMPL's (Eq. 11) with `drpl` or `gsam`,
            plus `cross_entropy_weight` times the cross-entropy where the model has a classifier.
        classes: identities of the training set.
        strips, dims: s and d of F.

    Raises:
        OptionError: an unknown or impossible option of DRPL or GSAM.
    """

    def __init__(self, config: BackboneTraining, classes: int, strips: int, dims: int) -> None:
        super().__init__()
        self.config = config
        self.gaitmpl: GaitMPLLoss | None = None
        if config.drpl is None and config.gsam is None:
            return
        memory = dict(config.gsam or {})
        fusion = memory.pop("fusion", "sine")
        drpl, gsam = None, None
        if config.drpl is not None:
            drpl = _made(DRPL, "drpl", {"margin": config.margin, **config.drpl}, config.steps)
        if config.gsam is not None:
            gsam = _made(GSAM, "gsam", {"seed": config.seed, **memory}, classes, strips, dims)
        self.gaitmpl = GaitMPLLoss(config.steps, drpl=drpl, gsam=gsam, fusion=fusion, margin=config.margin)

    def forward(
        self, features: Tensor, logits: Tensor | None, labels: Tensor, done: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, and what the log would say. Updates GSAM's memory: once per step, before `backward`.

        Args:
            features: F [n, s, d]. logits: [n, s', C] or None. labels: [n] int64. done: share of the run, 0..1.
        """
        config = self.config
        report: dict[str, float] = {}
        if self.gaitmpl is None:
            triplet, info = triplet_info(features, labels, config.margin)
            report |= {"triplet": float(triplet.detach()), "active_share": info.active_share}
            report["mean_distance"] = float(info.mean_distance.mean())
        else:
            triplet, terms = self.gaitmpl(features, labels, done * config.steps)
            report |= {name: float(value) for name, value in terms.items()}
        loss = config.triplet_weight * triplet
        if logits is not None and config.cross_entropy_weight:
            entropy = cross_entropy(logits, labels, config.scale, config.label_smoothing)
            loss = loss + config.cross_entropy_weight * entropy
            report["cross_entropy"] = float(entropy.detach())
            report["accuracy"] = float((logits.detach().mean(dim=1).argmax(dim=-1) == labels).float().mean())
        return loss, report

    def prepare(self, model: GaitModel, dataset: SequenceDataset) -> None:
        """Eq. 8: fills GSAM's memory with the untrained model's features of all training sequences, where there is one.

        As in Algorithm 1, before the first step; a resumed run loads it instead.
        """
        if self.gaitmpl is not None and self.gaitmpl.gsam is not None:
            self.gaitmpl.gsam.initialise(_features(model, dataset, self.config.frames))


def _features(model: GaitModel, dataset: SequenceDataset, frames: int) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for start in range(0, len(dataset), _BATCH):
        chosen = range(start, min(start + _BATCH, len(dataset)))
        batch = [to_input(dataset[i][:frames], model.input_size) for i in chosen]
        labels = torch.from_numpy(dataset.labels[chosen.start : chosen.stop]).to(device)
        yield model.forward_sequences(batch), labels


def _made(cls: type[Any], name: str, options: Mapping[str, Any], *sizes: int) -> Any:
    """One loss from plain options; an unknown one is the caller's mistake, not ours."""
    try:
        return cls(*sizes, **options)
    except TypeError as error:
        raise OptionError(
            f"an unknown or impossible option of {cls.__name__}", where=f"BackboneTraining.{name}", got=str(error),
            expected=f"arguments of gaitsdk_training.losses.{cls.__name__}", fix=f"correct {name}",
        ) from error  # fmt: skip
