"""One call for every protocol; each protocol is a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from gaitsdk.errors import OptionError
from gaitsdk_training.evaluation import casiab
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.request import Progress, Request


@dataclass(frozen=True)
class _Protocol:
    hit_table: Callable[[Request, Progress | None], HitTable]
    figures: Callable[[Request, HitTable], dict[str, float | int]]


_PROTOCOLS = {"casiab": _Protocol(casiab.hit_table, casiab.figures)}
#: Names that `evaluate` takes.
PROTOCOLS = tuple(sorted(_PROTOCOLS))


def evaluate(
    features: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    views: ArrayLike,
    protocol: str = "casiab",
    reranker: Any = None,
    k: int = 10,
    probe_set: Iterable[str] | None = None,
    *,
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> dict[str, float | int]:
    """Evaluates features by an official protocol.

    Args:
        features: F [n, s, d] float32.
        labels, types, views: [n] identities, sequence types and views.
        protocol: one of `PROTOCOLS`.
        reranker: `(probes [B, s, d], candidates [B, K, s, d]) -> distances [B, K]`, lower is nearer; re-orders the
            first k of each gallery that the protocol ranks; the tail keeps the shortlist's order. A `gaitsdk.rerankers`
            object or a CarGait network will do too. None = no re-ranking.
        k: length of the list that is re-ranked.
        probe_set: the probes of protocols that list them ("id-type-view"); None for the others.
        metric: "euclidean" or "cosine", of the shortlist.
        progress: called as progress(done, total).

    Returns:
        Flat figures in percent: `rank1` and `rank5`, each also per condition (`rank1/NM`) and probe view
        (`rank1/NM/090`); with a re-ranker the same before it, as `rank1_initial...`; `rank1_same_view...` (before
        re-ranking) for comparison; and the counts `probes` and `probes_dropped` (those with nothing
        to be ranked in).

    Raises:
        OptionError: an unknown protocol, metric or k. InputError: arrays that do not fit, or no probes.
    """
    request = Request.check(features, labels, types, views, reranker, k, probe_set, metric)
    return measure(request, protocol, progress)[0]


def hit_table(
    features: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    views: ArrayLike,
    protocol: str = "casiab",
    reranker: Any = None,
    k: int = 10,
    probe_set: Iterable[str] | None = None,
    *,
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> HitTable:
    """Every probe in every gallery that the protocol ranks, with the hits before and after re-ranking.

    Arguments and errors are those of `evaluate`. `paired_bootstrap(table.before, table.after, table.identity)` says how
    sure the gain is. Rows of identical views, which the figures leave out, are not re-ranked, have no `cross_view`.
    """
    request = Request.check(features, labels, types, views, reranker, k, probe_set, metric)
    return _choose(protocol).hit_table(request, progress)


def measure(
    request: Request, protocol: str, progress: Progress | None = None
) -> tuple[dict[str, float | int], HitTable]:
    """Figures and table in one pass: what `evaluate` and `hit_table` give."""
    chosen = _choose(protocol)
    table = chosen.hit_table(request, progress)
    return chosen.figures(request, table), table


def _choose(protocol: str) -> _Protocol:
    if protocol not in _PROTOCOLS:
        raise OptionError("no such protocol", where="protocol", got=repr(protocol), expected=" or ".join(PROTOCOLS))
    return _PROTOCOLS[protocol]
