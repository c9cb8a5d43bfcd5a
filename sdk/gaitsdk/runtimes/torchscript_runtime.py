"""TorchScript: the traced artefact of a bundle (legacy: torch has announced the end of `torch.jit`)."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from gaitsdk.errors import BundleError
from gaitsdk.runtimes.protocol import read_artefact
from gaitsdk.runtimes.torch_runtime import TorchNetworks, import_torch, prepare

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network


class TorchScriptRuntime(TorchNetworks):
    """Runs `artefacts/*.torchscript` with PyTorch.

    Args:
        bundle: whose artefacts to run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; one setting for the whole process, so None leaves it alone.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        torch = import_torch()
        used = prepare(torch, device, threads)
        backbone = _load(torch, bundle, "backbone", used)
        pair = None if bundle.manifest.reranker is None else _load(torch, bundle, "reranker", used)

        def rerank(probe: Any, candidates: Any) -> Any:
            distances, _order = pair(probe, candidates)  # type: ignore[misc]  # never called where there is no re-ranker
            return distances

        super().__init__("torchscript", bundle, used, backbone, rerank if pair is not None else None)


def _load(torch: Any, bundle: Bundle, network: Network, device: str) -> Any:
    artefact = read_artefact(bundle, network, "torchscript")
    try:
        with warnings.catch_warnings():
            # Whoever chose this runtime has read that it is legacy.
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
            module = torch.jit.load(io.BytesIO(artefact.content), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            "torch cannot load the artefact",
            where=artefact.path,
            got=str(error).splitlines()[0],
            fix=f"gaitsdk export {bundle.path} --to torchscript",
        ) from error
    return module.eval()
