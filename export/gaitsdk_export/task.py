"""Does the exported network still find the same people? Rank-1 and the order of the first ten over synthetic walkers.

Each of 100 people is enrolled with one walk and looked for with another, under another angle. The reference is the
eager network. Gates: in fp32 Rank-1 and the order of the first ten are the same; in the others Rank-1 changes by at
most 0.1 point, and 99.9 % of the pairs keep their order. Pairs that differ by no more than rounding does are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import distance, synthetic
from gaitsdk.errors import OptionError
from gaitsdk_export.cases import as_input
from gaitsdk_export.parity import Network

Array = NDArray[Any]

IDENTITIES, FRAMES, TOP = 100, 16, 10
ENROLLED, SOUGHT = ("nm-01", "090"), ("nm-05", "108")
#: Share of the largest distance below which two distances are the same but for rounding.
ROUNDING = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2, "int8": 1e-2}
#: Sequences that go through a network at once.
_BATCH = 10


@dataclass(frozen=True)
class TaskFigures:
    """What came out.

    Attributes:
        identities: people enrolled, and probes.
        rank1_eager, rank1: percent.
        same_order: share of the pairs (one of the reference's first ten, one farther away) in the same order, 0..1.
        reasons: why it fails; empty = it passes.
    """

    identities: int
    rank1_eager: float
    rank1: float
    same_order: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class Trial:
    """The people, with their features by the eager networks, computed once for all artefacts of a bundle.

    Args:
        backbone: eager; uint8 `[B, T, (C,) S, S]` -> [F `[B, s, d]`].
        reranker: eager; F `[B, s, d]`, `[B, K, s, d]` -> [distances `[B, K]`, order], or None.
        size, channels: S and C.
        metric: of the shortlist.
        identities: people.
        frames: of a walk.
    """

    def __init__(
        self,
        backbone: Network,
        reranker: Network | None,
        size: int,
        channels: int = 1,
        metric: str = "euclidean",
        identities: int = IDENTITIES,
        frames: int = FRAMES,
    ) -> None:
        self.metric, self.identities = metric, identities
        self._backbone, self._reranker = backbone, reranker
        self._walks: Callable[[tuple[str, str]], Array] = functools.lru_cache(maxsize=2)(
            lambda film: np.stack(
                [
                    as_input(synthetic.sequence(person, film[0], film[1], frames), size, channels)
                    for person in range(identities)
                ]
            )
        )

    def judge(self, role: str, exported: Network, precision: str) -> TaskFigures:
        """Figures of one exported network in the place of the eager one.

        Args:
            role: "backbone" or "reranker".
            exported: as the eager one of that role.
            precision: "fp32", "fp16", "bf16" or "int8": decides the gates.
        """
        if role == "backbone":
            reference, found = self._shortlist, self._distances(exported)
        else:
            reference, found = self._reranked(self._eager_reranker()), self._reranked(exported)
        return compare(reference, found, self._labels(role), precision)

    @functools.cached_property
    def _shortlist(self) -> Array:
        return self._distances(self._backbone)

    @functools.cached_property
    def _features(self) -> tuple[Array, Array]:
        return self._embed(self._backbone, SOUGHT), self._embed(self._backbone, ENROLLED)

    @functools.cached_property
    def _first(self) -> Array:
        return np.argsort(self._shortlist, axis=1, kind="stable")[:, :TOP]

    def _embed(self, network: Network, film: tuple[str, str]) -> Array:
        walks = self._walks(film)
        return np.concatenate([network(walks[i : i + _BATCH])[0] for i in range(0, len(walks), _BATCH)])

    def _distances(self, network: Network) -> Array:
        eager = network is self._backbone
        probes, gallery = self._features if eager else (self._embed(network, SOUGHT), self._embed(network, ENROLLED))
        return distance.pairwise(probes, gallery, self.metric)

    def _reranked(self, network: Network) -> Array:
        probes, gallery = self._features
        found = [network(probes[i : i + _BATCH], gallery[self._first[i : i + _BATCH]])[0] for i in self._starts]
        return np.concatenate(found)

    @property
    def _starts(self) -> range:
        return range(0, self.identities, _BATCH)

    def _eager_reranker(self) -> Network:
        if self._reranker is None:
            raise OptionError("the trial has no re-ranker to compare with", where="Trial")
        return self._reranker

    def _labels(self, role: str) -> Array:
        """The place of the right person in each row."""
        person = np.arange(self.identities)
        if role == "backbone":
            return person
        hit = self._first == person[:, None]
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def compare(reference: Array, found: Array, labels: Array, precision: str) -> TaskFigures:
    """Figures and gates for two tables of distances.

    Args:
        reference, found: `[n, m]`, lower is nearer.
        labels: `[n]`, the column of the right person; -1 = in no column.
        precision: decides the gates.

    Returns:
        The figures; a value that is not finite fails.
    """
    if not np.isfinite(found).all():
        return TaskFigures(len(found), _rank1(reference, labels), 0.0, 0.0, ("distances are NaN or infinite",))
    before, after = _rank1(reference, labels), _rank1(found, labels)
    agreement = _same_order(reference, found, ROUNDING[precision])
    most, least = (0.0, 1.0) if precision == "fp32" else (0.1, 0.999)
    reasons = []
    if not abs(before - after) <= most + 1e-9:
        reasons.append(f"Rank-1 {after:.1f} % instead of {before:.1f} %")
    if not agreement >= least:
        reasons.append(f"only {agreement:.3%} of the pairs of the first {TOP} in the same order")
    return TaskFigures(len(found), before, after, agreement, tuple(reasons))


def _rank1(distances: Array, labels: Array) -> float:
    return float(100 * np.mean(np.argsort(distances, axis=1, kind="stable")[:, 0] == labels))


def _same_order(reference: Array, found: Array, rounding: float) -> float:
    """Share of the pairs (near, far), near among the reference's first ten, that stay near and far."""
    margin = rounding * float(np.abs(reference).max())
    first = np.argsort(reference, axis=1, kind="stable")[:, :TOP]
    near, now = (np.take_along_axis(each, first, axis=1) for each in (reference, found))
    clear = near[:, :, None] < reference[:, None, :] - margin
    kept = now[:, :, None] < found[:, None, :]
    return float(kept[clear].mean()) if clear.any() else 1.0
