"""PyTorch, eager: builds the networks from the bundle's weights; needs no artefact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gaitsdk.errors import MissingDependencyError, RuntimeUnavailableError
from gaitsdk.runtimes.protocol import (
    FRAMES_PER_CALL,
    Features,
    Silhouettes,
    check_pairs,
    check_silhouettes,
    embed_in_parts,
    rerank_in_parts,
)

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle


def import_torch() -> Any:
    """The torch module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "PyTorch is not installed",
            where="runtime 'torch' or 'torchscript'",
            fix="pip install torch, or use runtime='onnx' with a bundle that has its ONNX",
        ) from error
    return torch


def pick_device(torch: Any, device: str) -> str:
    """ "auto" becomes "cuda:0" where torch can use one, else "cpu"; a device that is named must exist.

    Raises:
        RuntimeUnavailableError: torch has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if device == "cpu":
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise RuntimeUnavailableError(
            "torch has no such device",
            where=f"device {device!r}",
            got=f"{count} CUDA devices, torch {torch.__version__}",
            fix="device='cpu', or install a CUDA build of torch and a driver that fits it",
        )
    return f"cuda:{index}"


class TorchNetworks:
    """The runtime protocol over two torch callables, whichever way they were made."""

    def __init__(self, name: str, bundle: Bundle, device: str, backbone: Any, reranker: Any | None) -> None:
        self._torch = import_torch()
        self.name, self.device = name, device
        self._bundle, self._backbone, self._reranker = bundle, backbone, reranker

    def embed(self, silhouettes: Silhouettes) -> Features:
        backbone = self._open(self._backbone)
        batch = check_silhouettes(silhouettes, self._bundle)
        return embed_in_parts(lambda part: self._call(backbone, part), batch, self._bundle, self.device)

    def rerank(self, probe: Features, candidates: Features) -> Features:
        probes, lists = check_pairs(probe, candidates, self._bundle)
        reranker = self._open(self._reranker)
        return rerank_in_parts(lambda p, c: self._call(reranker, p, c), probes, lists, self._bundle, self.device)

    def close(self) -> None:
        self._backbone = self._reranker = None

    def _open(self, network: Any | None) -> Any:
        if network is None:
            raise RuntimeUnavailableError("the runtime was closed", where=f"runtime {self.name!r}", fix="open it again")
        return network

    def _call(self, network: Any, *arrays: NDArray[Any]) -> Features:
        torch = self._torch
        with torch.inference_mode():
            # A copy where the array is read-only: torch cannot mark a tensor so, and would warn.
            inputs = [torch.from_numpy(each if each.flags.writeable else each.copy()) for each in arrays]
            output = network(*(each.to(self.device) for each in inputs))
            features: Features = output.to("cpu", torch.float32).numpy()
        return features


class TorchRuntime(TorchNetworks):
    """Eager PyTorch.

    Args:
        bundle: whose networks to run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; one setting for the whole process, so None leaves it alone.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None) -> None:
        torch = import_torch()
        used = prepare(torch, device, threads)
        backbone: Any = bundle.build_backbone().to(used).requires_grad_(False)
        reranker = bundle.build_reranker()
        spec = bundle.manifest.input
        if used != "cpu":
            backbone.chunk_frames = FRAMES_PER_CALL["cuda"]  # the model's own value suits the caches of a CPU

        def embed(silhouettes: Any) -> Any:
            # The same steps in the same order as in the exported graph (gaitsdk_export.wrappers); in chunks of frames,
            # so that one long sequence takes no more memory than a short one where the architecture allows it.
            frames = silhouettes.float()[..., spec.cut : spec.size - spec.cut] / spec.scale
            return backbone.forward_sequences(list(frames))

        super().__init__("torch", bundle, used, embed, reranker.to(used).requires_grad_(False) if reranker else None)


def prepare(torch: Any, device: str, threads: int | None) -> str:
    """Settings of torch that both torch runtimes want; gives the device."""
    used = pick_device(torch, device)
    if threads is not None:
        torch.set_num_threads(threads)
    if used != "cpu":
        # TF32 convolutions (torch's default) are off by 1e-3: a gallery enrolled on a CPU would not match well.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return used
