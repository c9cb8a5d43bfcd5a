"""Re-rankers: what re-orders the first K candidates of a shortlist. One interface, chosen by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gaitsdk.errors import OptionError
from gaitsdk.rerankers.cargait import CarGaitReranker

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.pipeline import Features
    from gaitsdk.runtimes import NetworkRuntime

#: Names that `Recognizer.load(reranker=...)` takes.
RERANKERS = ("cargait", "none")


class Reranker(Protocol):
    """Gives the candidates of a shortlist new distances."""

    @property
    def name(self) -> str: ...

    def rescore(self, probe: Features, candidates: Features) -> Features:
        """`F [n, s, d]` and their candidates `[n, K, s, d]` -> distances `[n, K]` float32, lower is nearer."""
        ...


def check_reranker(name: str, bundle: Bundle) -> str:
    """The name, or an OptionError: no re-ranker is called so, or the bundle has no weights for it."""
    if name not in RERANKERS:
        raise OptionError("unknown re-ranker", where="reranker", got=repr(name), expected=" or ".join(RERANKERS))
    if name == "cargait" and bundle.manifest.reranker is None:
        raise OptionError(
            "this bundle has no CarGait weights",
            where=str(bundle.path),
            fix='reranker="none" (--reranker none), or train one: gaitsdk train reranker',
        )
    return name


def create_reranker(name: str, bundle: Bundle, runtime: NetworkRuntime) -> Reranker | None:
    """The re-ranker of that name, or None for "none". Errors as in `check_reranker`."""
    return CarGaitReranker(runtime) if check_reranker(name, bundle) == "cargait" else None
