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


def create_reranker(name: str, bundle: Bundle, runtime: NetworkRuntime) -> Reranker | None:
    """The re-ranker of that name, or None for "none".

    Raises:
        OptionError: unknown name, or the bundle has no weights for it.
    """
    if name == "none":
        return None
    if name != "cargait":
        raise OptionError("unknown re-ranker", where="reranker", got=repr(name), expected=" or ".join(RERANKERS))
    if bundle.manifest.reranker is None:
        raise OptionError(
            "this bundle has no CarGait weights",
            where=str(bundle.path),
            fix='load with reranker="none", or train one: gaitsdk train reranker',
        )
    return CarGaitReranker(runtime)
