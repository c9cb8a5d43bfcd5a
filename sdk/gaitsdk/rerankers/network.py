"""The re-rankers that are networks: `gaitsdk.models` has them, a runtime executes what the bundle holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaitsdk.pipeline import Features
    from gaitsdk.runtimes import NetworkRuntime


class NetworkReranker:
    """The network of a bundle: distances after strip-wise cross-attention ("cargait"; CarGait, section 3), or -log of
    the probability that both are one person ("classifier"; its Figure 6). Every pair is judged alone.

    Args:
        name: "cargait" or "classifier": what the bundle holds.
        runtime: that has the bundle open.
    """

    scope = "list"

    def __init__(self, name: str, runtime: NetworkRuntime) -> None:
        self.name = name
        self._runtime = runtime

    def rescore(self, probe: Features, candidates: Features) -> Features:
        """`[n, s, d]`, `[n, K, s, d]` -> `[n, K]` float32, lower is nearer."""
        return self._runtime.rerank(probe, candidates)
