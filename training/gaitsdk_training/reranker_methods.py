"""What is trained on the lists: the network and the loss of one step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gaitsdk.models.cargait import CarGait
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_training.losses import cross_entropy, ranking_loss
from gaitsdk_training.processes import Processes
from gaitsdk_training.reranker_config import RerankerTraining

#: Makes the context for a network's forward pass, see `optimising.Optimising.autocast`.
Autocast = Callable[[], AbstractContextManager[object]]


class Method(Protocol):
    """A network and its loss."""

    @property
    def model(self) -> CarGait | PairClassifier: ...

    def loss(self, probes: Tensor, others: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One step's loss.

        Args:
            probes: positions [B] in the features, of this process's rows. others: [B, 1 + negatives], the positive
                first.
            autocast: for the network; the losses are computed in float32.

        Returns:
            The scalar loss, the distances [n, 1 + negatives] and the loss's terms for the log, all of them of the rows
            of all processes together.
        """
        ...


class CarGaitMethod:
    """CarGait by Eq. (2): the ranking loss, and alpha times the cross-entropy over both conditioned maps of every pair.

    Args:
        config: see there.
        features: F [n, s, d] of the training sequences, on the device where the network shall be.
        labels: int64 [n], 0 to C - 1.
        group: the processes that share a step.
    """

    def __init__(self, config: RerankerTraining, features: Tensor, labels: Tensor, group: Processes) -> None:
        self.config, self.features, self.labels, self.group = config, features, labels, group
        count = int(labels.max()) + 1 if config.alpha else None
        self.model = CarGait(features.shape[2], config.width, config.heads, count).to(features.device)

    def loss(self, probes: Tensor, others: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        entropy = None
        if config.alpha:
            distances, entropy = self._conditioned(probes, others, autocast)
        else:
            with autocast():
                distances = self.model(self.features[probes], self.features[others])
        distances = self.group.gather(distances.float())
        positive = distances[:, :1].expand(-1, config.negatives)
        ranking = ranking_loss(positive, distances[:, 1:], config.beta, config.reduction)
        if entropy is None:
            return ranking, distances, {"ranking": ranking}
        return ranking + config.alpha * entropy, distances, {"ranking": ranking, "cross_entropy": entropy}

    def _conditioned(self, probes: Tensor, others: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor]:
        """Distances [B, 1 + negatives] of these rows, and the cross-entropy over all processes."""
        count = others.shape[1]
        first, second = probes.repeat_interleave(count), others.reshape(-1)
        with autocast():
            attended_p, attended_c = self.model.attend(self.features[first], self.features[second])
            logits = self.model.classify(torch.cat([attended_p, attended_c]))
        # float32 already: features in float32, plus what attention adds to them
        distances = torch.linalg.vector_norm(attended_p - attended_c, dim=-1).mean(dim=-1).reshape(-1, count)
        labels = self.labels[torch.cat([first, second])]
        entropy = cross_entropy(logits.float(), labels, scale=1.0, label_smoothing=self.config.label_smoothing)
        return distances, self.group.mean(entropy)


class ClassifierMethod:
    """The baseline of Figure 6 by binary cross-entropy, its mean over the pairs of a step.

    The pairs are those of CarGait's triplets: as many positives as negatives where negatives = 1. Arguments as for
    `CarGaitMethod`.
    """

    def __init__(self, config: RerankerTraining, features: Tensor, labels: Tensor, group: Processes) -> None:
        self.features, self.group = features, group
        self.model = PairClassifier(features.shape[2], features.shape[1], config.width).to(features.device)

    def loss(self, probes: Tensor, others: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        with autocast():
            logits = self.model.logits(self.features[probes], self.features[others])
        logits = self.group.gather(logits.float())
        same = torch.zeros_like(logits)
        same[:, 0] = 1.0
        entropy = F.binary_cross_entropy_with_logits(logits, same)
        right = ((logits > 0) == (same > 0)).float().mean()
        return entropy, F.softplus(-logits), {"binary_cross_entropy": entropy, "classified_right": right}


_CLASSES: dict[str, type[CarGaitMethod] | type[ClassifierMethod]] = {
    "cargait": CarGaitMethod,
    "classifier": ClassifierMethod,
}


def create_method(config: RerankerTraining, features: Tensor, labels: Tensor, group: Processes) -> Method:
    """The method that `config.method` names (the configuration has checked it)."""
    return _CLASSES[config.method](config, features, labels, group)
