"""P x K batches: P identities, K sequences each."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import OptionError, TrainingError

logger = logging.getLogger(__name__)


class PxKSampler:
    """Batches of `p * k` positions in `labels`: P identities without replacement, K sequences of each, with replacement
    only where an identity has fewer than K. An identity with a single sequence stands K times in a batch, each time
    with other frames of it: a warning counts such identities, for they teach little.

    Batch number i depends on the seed and i alone, so a resumed run sees the batches that it would have seen.

    Args:
        labels: [n] integer.
        p, k: identities and sequences per identity, >= 1.
        seed: of all batches.

    Raises:
        OptionError: p or k below 1. TrainingError: fewer than p identities, or only one, which has no negatives.
    """

    def __init__(self, labels: ArrayLike, p: int, k: int, seed: int = 0) -> None:
        for name, value in (("p", p), ("k", k)):
            if value < 1:
                raise OptionError("impossible batch", where=f"PxKSampler.{name}", got=value, expected="at least 1")
        self.p, self.k, self.seed = p, k, seed
        order = np.argsort(np.asarray(labels), kind="stable")
        ends = np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1
        self._groups: list[NDArray[np.int64]] = np.split(order, ends) if len(order) else []
        if len(self._groups) < max(p, 2):
            raise TrainingError(
                "fewer identities than a batch needs",
                where="PxKSampler",
                got=f"{len(self._groups)} identities",
                expected=f"at least p={p}" if p > 1 else "at least 2, for without another there is nothing to tell",
                fix="lower p, or train on more identities" if len(self._groups) > 1 else "train on more identities",
            )
        lone = sum(len(group) == 1 for group in self._groups)
        if lone and k > 1:
            logger.warning("%d of %d identities have a single sequence", lone, len(self._groups))

    def batch(self, index: int) -> NDArray[np.int64]:
        """Batch number `index` (from 0): int64 [p * k], the k sequences of an identity side by side."""
        rng = np.random.default_rng((self.seed, index))
        chosen = rng.choice(len(self._groups), self.p, replace=False)
        picks = [rng.choice(self._groups[i], self.k, replace=len(self._groups[i]) < self.k) for i in chosen]
        return np.concatenate(picks)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Batches without end."""
        index = 0
        while True:
            yield self.batch(index)
            index += 1
