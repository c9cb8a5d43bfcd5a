"""What a ranked gallery says of a probe, and re-rankers that put its entries in another order.

A rank is counted, not read off a sorted list: it is 1 + the entries that are nearer + the equally near ones that stand
before it in the gallery. That is the rank of a stable sort, at a fraction of a sort's time where an identity has few
entries.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import InputError, OptionError

Features = NDArray[np.float32]
Positions = NDArray[np.int64]
#: F of B probes `[B, s, d]` and of their candidates `[B, K, s, d]` -> new distances `[B, K]`, lower is nearer.
Reranker = Callable[[Features, Features], Any]

SCOPES = ("list", "full")
#: Probes that are handed to a re-ranker of lists in one call.
BATCH = 64
#: Distances that are compared in one step: 16 MB.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Rescorer:
    """A re-ranker as the protocols use it.

    Attributes:
        scope: "list": the first K of each list get new distances; "full": the whole gallery does.
        call: "list": `(probes [B, s, d], candidates [B, K, s, d]) -> [B, K]`; "full": `(probes [n, s, d],
            gallery [m, s, d]) -> [n, m]`. Lower is nearer.
    """

    scope: str
    call: Reranker

    def rescore(self, probes: Features, candidates: Features) -> Features:
        """The re-ranker's distances, checked.

        Raises:
            InputError: they have the wrong shape, or are not finite.
        """
        expected = candidates.shape[:2] if self.scope == "list" else (len(probes), len(candidates))
        distances = np.asarray(self.call(probes, candidates))
        if distances.shape != expected or distances.dtype.kind not in "fiu" or not np.isfinite(distances).all():
            raise InputError(
                "the re-ranker's distances are unusable",
                where="reranker",
                got=f"{distances.dtype} {list(distances.shape)}",
                expected=f"finite {list(expected)}",
            )
        return distances


def nearest(distances: Features, k: int) -> Positions:
    """The k nearest entries of each row, nearest first, equal distances in the gallery's order: [n, m] -> [n, k]."""
    if k >= distances.shape[1]:
        return np.argsort(distances, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(distances, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(distances, chosen, axis=1)
    order = np.take_along_axis(chosen, np.argsort(values, axis=1, kind="stable"), axis=1)
    # A partition takes any of several equally far entries for the last places, a stable sort the first of them.
    tied = np.flatnonzero(np.count_nonzero(distances <= values.max(axis=1, keepdims=True), axis=1) > k)
    order[tied] = np.argsort(distances[tied], axis=1, kind="stable")[:, :k]
    return order


def rank_entries(distances: Features, rows: Positions, columns: Positions) -> Positions:
    """Ranks (from 1) of the entries `(rows[i], columns[i])` in their rows: int64 [P]."""
    ranks = np.empty(len(rows), np.int64)
    index = np.arange(distances.shape[1])
    step = max(1, _BLOCK // max(1, distances.shape[1]))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        row = distances[rows[block]]
        own = distances[rows[block], columns[block]][:, None]
        before = (row < own) | ((row == own) & (index < columns[block, None]))
        ranks[block] = 1 + np.count_nonzero(before, axis=1)
    return ranks


def rescore_lists(probes: Features, gallery: Features, lists: Positions, reranker: Rescorer) -> Features:
    """New distances of the entries of each list: `lists [n, K]` are positions in the gallery -> [n, K]."""
    parts = [
        reranker.rescore(probes[start : start + BATCH], gallery[lists[start : start + BATCH]])
        for start in range(0, len(lists), BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros(lists.shape, np.float32)


def reorder_ranks(ranks: Positions, rows: Positions, distances: Features) -> Positions:
    """Ranks after the first K of each list were put in the order of `distances [n, K]`; those beyond K stay."""
    place = np.argsort(np.argsort(distances, axis=1, kind="stable"), axis=1)
    result = ranks.copy()
    inside = ranks <= distances.shape[1]
    result[inside] = place[rows[inside], ranks[inside] - 1] + 1
    return result


def summarise(
    rows: Positions, ranks: Positions, count: int
) -> tuple[Positions, NDArray[np.float64], NDArray[np.float64]]:
    """What the ranks of its identity's entries say of each probe.

    Args:
        rows, ranks: int64 [P], one for each entry of a probe's identity: the probe (0..count - 1) and the rank from 1.
        count: n, probes.

    Returns:
        Rank of the first such entry, int64 [n], 0 where there is none; average precision (not interpolated) and inverse
        negative penalty (their number / rank of the last one), float64 [n] in 0..1, NaN where there is none.
    """
    order = np.lexsort((ranks, rows))
    row, rank = rows[order], ranks[order]
    counts = np.bincount(row, minlength=count)
    starts = np.cumsum(counts) - counts
    found = counts > 0
    first = np.zeros(count, np.int64)
    first[found] = rank[starts[found]]
    precision, penalty = np.full(count, np.nan), np.full(count, np.nan)
    hits = np.arange(1, len(row) + 1) - starts[row]
    precision[found] = np.bincount(row, hits / rank, minlength=count)[found] / counts[found]
    penalty[found] = counts[found] / rank[(starts + counts - 1)[found]]
    return first, precision, penalty


def as_reranker(value: Any) -> Rescorer | None:
    """What `evaluate` takes: None, a callable on arrays, a `gaitsdk.rerankers` object, or a CarGait network.

    Raises:
        OptionError: anything else.
    """
    if value is None or isinstance(value, Rescorer):
        return value
    torch = sys.modules.get("torch")  # a network cannot exist without it; nothing is imported for the others
    if torch is not None and isinstance(value, torch.nn.Module):
        return Rescorer("list", from_network(value))
    scope = getattr(value, "scope", "list")
    found = getattr(value, "rescore_all", None) if scope == "full" else getattr(value, "rescore", value)
    if scope not in SCOPES or not callable(found):
        raise OptionError(
            "not a re-ranker",
            where="reranker",
            got=repr(value),
            expected="None, a callable (probes [B, s, d], candidates [B, K, s, d]) -> distances [B, K], or an object "
            'with `rescore` like it (scope "list") or `rescore_all` (scope "full")',
        )
    return Rescorer(scope, found)


def from_network(model: Any) -> Reranker:
    """A re-ranker from a `gaitsdk.models.cargait.CarGait` in PyTorch, on the device where it is.

    The network is put in eval mode.
    """
    import torch

    network = model.eval()
    device = next(network.parameters()).device

    def rescore(probes: Features, candidates: Features) -> Features:
        with torch.inference_mode():
            inputs = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in (probes, candidates))
            distances: Features = network(*inputs).float().cpu().numpy()
        return distances

    return rescore
