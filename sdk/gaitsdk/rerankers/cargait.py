"""CarGait as a re-ranker: the network is in `gaitsdk.models.cargait`, this runs it through a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gaitsdk.pipeline import Features
    from gaitsdk.runtimes import NetworkRuntime


class CarGaitReranker:
    """Distances after strip-wise cross-attention (CarGait, section 3)."""

    name = "cargait"

    def __init__(self, runtime: NetworkRuntime) -> None:
        self._runtime = runtime

    def rescore(self, probe: Features, candidates: Features) -> Features:
        """`[n, s, d]`, `[n, K, s, d]` -> `[n, K]` float32."""
        return self._runtime.rerank(probe, candidates)
