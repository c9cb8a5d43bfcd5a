"""Ranking one gallery for many probes, and re-ranking its first K."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import InputError, OptionError

Features = NDArray[np.float32]
#: F of B probes `[B, s, d]` and of their candidates `[B, K, s, d]` -> new distances `[B, K]`, lower is nearer.
Reranker = Callable[[Features, Features], Any]

#: Probes that are handed to a re-ranker in one call.
_BATCH = 64


def rank_gallery(distances: Features) -> NDArray[np.int64]:
    """Positions in the gallery, nearest first, equal distances in the gallery's order: [n, m] -> int64 [n, m]."""
    return np.argsort(distances, axis=1, kind="stable")


def rerank(
    order: NDArray[np.int64], probes: Features, gallery: Features, reranker: Reranker, k: int
) -> NDArray[np.int64]:
    """Puts the first k of every list in the re-ranker's order; the tail keeps the shortlist's.

    Args:
        order: [n, m] from `rank_gallery`.
        probes: F [n, s, d]. gallery: F [m, s, d].
        reranker: see `Reranker`.
        k: at most m of it is used.

    Returns:
        int64 [n, m].

    Raises:
        InputError: the re-ranker's answer has the wrong shape, or is not finite.
    """
    count = min(k, order.shape[1])
    result = order.copy()
    for start in range(0, len(order), _BATCH):
        rows = slice(start, start + _BATCH)
        first = order[rows, :count]
        distances = np.asarray(reranker(probes[rows], gallery[first]))
        if distances.shape != first.shape or not np.isfinite(distances).all():
            raise InputError(
                "the re-ranker's distances are unusable",
                where="reranker",
                got=f"{distances.dtype} {list(distances.shape)}",
                expected=f"finite {list(first.shape)}",
            )
        result[rows, :count] = np.take_along_axis(first, np.argsort(distances, axis=1, kind="stable"), axis=1)
    return result


def as_reranker(value: Any) -> Reranker | None:
    """What `evaluate` takes: None, a callable on arrays, a `gaitsdk.rerankers` object, or a CarGait network.

    Raises:
        OptionError: anything else.
    """
    if value is None:
        return None
    torch = sys.modules.get("torch")  # a network cannot exist without it; nothing is imported for the others
    if torch is not None and isinstance(value, torch.nn.Module):
        return from_network(value)
    found = getattr(value, "rescore", value)
    if not callable(found):
        raise OptionError(
            "not a re-ranker",
            where="reranker",
            got=repr(value),
            expected="a callable (probes [B, s, d], candidates [B, K, s, d]) -> distances [B, K], or None",
        )
    reranker: Reranker = found
    return reranker


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
