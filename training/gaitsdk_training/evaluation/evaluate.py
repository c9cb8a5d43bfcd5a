"""One call for every protocol; each protocol is a module of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import ArrayLike

from gaitsdk.errors import OptionError
from gaitsdk.slips import did_you_mean
from gaitsdk_training.evaluation.casiab import CASIAB, CASIAB_CROSS_VIEW
from gaitsdk_training.evaluation.cells import rank_cells
from gaitsdk_training.evaluation.gait3d import GAIT3D
from gaitsdk_training.evaluation.grew import GREW
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.oumvlp import OUMVLP, OUMVLP_CROSS_VIEW
from gaitsdk_training.evaluation.protocol import Figures, Protocol
from gaitsdk_training.evaluation.request import Progress, Request

_PROTOCOLS: dict[str, Protocol] = {
    each.name: each for each in (CASIAB, OUMVLP, GAIT3D, GREW, CASIAB_CROSS_VIEW, OUMVLP_CROSS_VIEW)
}
#: Names that `evaluate` takes.
PROTOCOLS = tuple(_PROTOCOLS)


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
) -> Figures:
    """Evaluates features by an official protocol.

    Args:
        features: F [n, s, d] float32.
        labels, types, views: [n] identities, sequence types and views; the three together name a sequence.
        protocol: one of `PROTOCOLS`; docs/protocols.md says how each ranks and rounds.
        reranker: `(probes [B, s, d], candidates [B, K, s, d]) -> distances [B, K]`, lower is nearer; re-orders the
            first k of each gallery that the protocol ranks; the tail keeps the shortlist's order. A `gaitsdk.rerankers`
            object or a CarGait network will do too: an object whose `scope` is "full" re-orders the whole gallery by
            `rescore_all(probes [n, s, d], gallery [m, s, d]) -> distances [n, m]`. None = no re-ranking.
        k: length of the list that is re-ranked; a gallery with fewer entries is re-ranked as a whole.
        probe_set: the probes of protocols that list them ("id-type-view": gait3d); None for the others.
        metric: "euclidean" or "cosine", of the shortlist.
        progress: called as progress(done, total).

    Returns:
        Flat figures in percent: `rank1 rank5 rank10 rank20 mAP mINP`, those that the protocol has; for data sets with
        conditions and views also per condition (`rank1/NM`) and probe view (`rank1/NM/090`). With a re-ranker the same
        before it, as `rank1_initial...`. `rank1_with_mate...` (oumvlp) leaves out probes that lack a mate;
        `rank1_same_view...` (casiab, oumvlp; before re-ranking) is the excluded diagonal, for comparison. The counts:
        `probes`, `probes_dropped` (not in the figures: nothing to be ranked in or, in gait3d, no mate), and where the
        protocol has them `probes/NM`, `probes_without_mate` (counted as misses), `probes_absent` (listed, but not in
        the data), `rankings` and `rankings_without_mate` (pairs of a probe and a gallery view).

    Raises:
        OptionError: an unknown protocol or metric, a k below 1, no re-ranker.
        InputError: arrays that do not fit, NaN, the same sequence twice, no gallery or no probes, a probe set where
            there is none or none where there is one, a re-ranker's answer that is unusable.
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
    sure the gain is. Rows that the figures leave out are there, too: identical views (not re-ranked, no `cross_view`),
    and in gait3d probes without a mate (no `has_mate`).
    """
    chosen = choose(protocol)
    request = Request.check(features, labels, types, views, reranker, k, probe_set, metric)
    return _rank(request, chosen, progress)


def measure(request: Request, protocol: str, progress: Progress | None = None) -> tuple[Figures, HitTable]:
    """Figures, and the table's rows that are in them, in one pass."""
    chosen = choose(protocol)
    table = _rank(request, chosen, progress)
    figures = chosen.figures(request.names, table, request.reranker is not None)
    return figures, chosen.counted(request.names, table)


def _rank(request: Request, protocol: Protocol, progress: Progress | None) -> HitTable:
    cells = protocol.cells(request.names)
    request.names.refuse_twins()  # after the protocol has said whether these names mean anything to it
    return rank_cells(request, cells, progress)


def choose(protocol: str) -> Protocol:
    """The protocol of that name.

    Raises:
        OptionError: no such protocol.
    """
    if protocol not in _PROTOCOLS:
        raise OptionError(
            "no such protocol",
            where="protocol",
            got=repr(protocol),
            expected=", ".join(PROTOCOLS),
            fix=did_you_mean(protocol, PROTOCOLS),
        )
    return _PROTOCOLS[protocol]
