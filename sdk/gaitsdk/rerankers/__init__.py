"""Re-rankers: what re-orders the first K candidates of a shortlist. One interface, chosen by name.

none              the shortlist's own distance
cargait           the bundle's CarGait                                  network
classifier        the bundle's binary classifier, CarGait's baseline    network
k-reciprocal      Zhong et al. 2017                                     the other candidates count
lbr               local blurring, Luo et al. 2019                       the other candidates count
gcr               graph convolution, Zhang et al. 2023                  the other candidates count
query-expansion   alpha-QE, Radenovic et al. 2019                       the other candidates count

docs/rerankers.md says which formulas they are and how they were carried over to strips.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gaitsdk.errors import OptionError
from gaitsdk.rerankers.base import ParameterFree
from gaitsdk.rerankers.gcr import GraphConvolutionReranker
from gaitsdk.rerankers.k_reciprocal import KReciprocalReranker
from gaitsdk.rerankers.lbr import LocalBlurringReranker
from gaitsdk.rerankers.network import NetworkReranker
from gaitsdk.rerankers.none import NoReranker
from gaitsdk.rerankers.query_expansion import QueryExpansionReranker
from gaitsdk.slips import did_you_mean

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.pipeline import Features
    from gaitsdk.runtimes import NetworkRuntime

__all__ = [
    "DEFAULT_K",
    "NETWORKS",
    "RERANKERS",
    "Reranker",
    "check_reranker",
    "compares_pairs",
    "create",
    "create_reranker",
    "list_length",
]

#: Those that are networks of a bundle: its manifest names the one it has.
NETWORKS = ("cargait", "classifier")
_PARAMETER_FREE: dict[str, type[ParameterFree]] = {
    each.NAME: each
    for each in (
        NoReranker,
        KReciprocalReranker,
        LocalBlurringReranker,
        GraphConvolutionReranker,
        QueryExpansionReranker,
    )
}
#: Names that `Recognizer.load(reranker=...)` takes.
RERANKERS = (*NETWORKS, *_PARAMETER_FREE)
#: Length of the re-ranked list where no training has set one (CarGait, section 4.3).
DEFAULT_K = 10


@runtime_checkable
class Reranker(Protocol):
    """Gives the candidates of a shortlist new distances."""

    @property
    def name(self) -> str:
        """What results, calibrations and reports call it."""
        ...

    @property
    def scope(self) -> str:
        """ "list", or "full": then there is `rescore_all(probes [n, s, d], gallery [m, s, d]) -> [n, m]`, too."""
        ...

    def rescore(self, probe: Features, candidates: Features) -> Features:
        """`F [n, s, d]` and their candidates `[n, K, s, d]` -> distances `[n, K]` float32, lower is nearer."""
        ...


def create(name: str, scope: str = "list", **options: Any) -> ParameterFree:
    """A re-ranker without weights; `create_reranker` makes those of a bundle, too.

    Args:
        name: "none", "k-reciprocal", "lbr", "gcr" or "query-expansion".
        scope: "list" or "full", see `ParameterFree`.
        options: the fields of its class.

    Raises:
        OptionError: another name, scope or option (with the nearest that there is), or an impossible value.
    """
    _check_name(name)
    if name in NETWORKS:
        raise OptionError(
            "this re-ranker is a network and needs its bundle",
            where="reranker",
            got=repr(name),
            fix="Recognizer.load(bundle, reranker=...), or create_reranker(name, bundle, runtime)",
        )
    found = _PARAMETER_FREE[name]
    known = [each.name for each in fields(found) if each.name != "scope"]
    for option in options:
        if option not in known:
            raise OptionError(
                "no such option",
                where=f"re-ranker {name}",
                got=repr(option),
                expected=" or ".join(known) or "no option at all",
                fix=did_you_mean(option, known),
            )
    return found(scope=scope, **options)


def check_reranker(name: str, bundle: Bundle) -> str:
    """The name, or an OptionError: no re-ranker is called so, or it is a network that the bundle has not."""
    _check_name(name)
    spec = bundle.manifest.reranker
    if name in NETWORKS and (spec is None or spec.name != name):
        called = {"cargait": "CarGait", "classifier": "classifier"}[name]
        other = 'reranker="none" (--reranker none)'
        if spec is not None and spec.name in NETWORKS:
            other = f'reranker="{spec.name}" (--reranker {spec.name}), which it has'
        raise OptionError(
            f"this bundle has no {called} weights",
            where=str(bundle.path),
            fix=f"{other}, or train one: gaitsdk train reranker",
        )
    return name


def create_reranker(
    reranker: str | Reranker, bundle: Bundle, runtime: NetworkRuntime, scope: str = "list", **options: Any
) -> Reranker | None:
    """The re-ranker of that name, or None for "none".

    Args:
        reranker: one of `RERANKERS`, or one that was made already.
        bundle: for what it holds. runtime: that has its networks open.
        scope, options: as for `create`; a network has the scope "list" and no options.

    Raises:
        OptionError: as for `check_reranker` and `create`; an object that is no re-ranker.
    """
    if not isinstance(reranker, str):
        made = _check_object(reranker)
    elif check_reranker(reranker, bundle) not in NETWORKS:
        made = create(reranker, scope, **options)
    elif scope == "list" and not options:
        made = NetworkReranker(reranker, runtime)
    else:
        raise OptionError(
            "a network judges pairs and has no options",
            where=f"re-ranker {reranker}",
            got=", ".join([f"scope={scope!r}", *options]),
            expected="scope='list'",
            fix="leave them out; whole matrices are for "
            + ", ".join(each for each in _PARAMETER_FREE if each != "none"),
        )
    return None if made.name == "none" else made


def list_length(name: str, bundle: Bundle) -> int:
    """K, how many candidates this re-ranker gets where nothing else is asked for: 0 for "none", else what the bundle's
    network was trained for, or `DEFAULT_K`."""
    return 0 if name == "none" else bundle.manifest.k or DEFAULT_K


def compares_pairs(name: str) -> bool:
    """Whether the distance of a pair means something without other candidates, as `verify` needs it. `name` as results
    state it, with options or without."""
    return name.partition("(")[0] in (*NETWORKS, "none")


def _check_object(value: object) -> Reranker:
    if not isinstance(value, Reranker):
        raise OptionError(
            "not a re-ranker",
            where="reranker",
            got=type(value).__name__,
            expected="a name, or an object with name, scope and rescore(probe, candidates)",
        )
    return value


def _check_name(name: str) -> None:
    if name not in RERANKERS:
        raise OptionError(
            "unknown re-ranker",
            where="reranker",
            got=repr(name),
            expected=", ".join(RERANKERS),
            fix=did_you_mean(name, RERANKERS),
        )
