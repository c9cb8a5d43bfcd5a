"""PyTorch: builds the networks from the bundle's weights; needs no artefact.

On a GPU the backbone's convolutions read their maps channels last, and each size in use has a CUDA graph, because the
launches of a small network take longer than its arithmetic. What cannot be captured runs eagerly, as on a CPU.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
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
from gaitsdk.runtimes.tensorrt_engines import GRAPHS_PER_LANE, Limits, repeat

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle

logger = logging.getLogger(__name__)

#: Runtimes by name, with the arithmetic of the backbone's convolutions and matrix products (autocast; norms, softmax
#: and the re-ranker stay float32).
PRECISION = {"torch": "float32", "torch-bf16": "bfloat16", "torch-fp16": "float16"}
#: Sizes that get a CUDA graph. Beyond them arithmetic takes longer than launches, and a graph would hold much memory.
GRAPHED = Limits({"batch": (1, 64), "frames": (1, 240)})
Embed = Callable[[Silhouettes], Features]


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


class Graphs:
    """A backbone as one CUDA graph for each size in use. Several threads may call; one at a time runs.

    Batches are padded to powers of two and, where repeated frames change nothing, sequences to multiples of eight, so
    that a few graphs serve all calls; the one not used for longest makes room.

    Args:
        capture: records a graph for arrays of this one's shape, and gives what replays it.
        eager: answers where a size is too large or cannot be captured.
        cyclic: repeating frames changes nothing.
    """

    def __init__(self, capture: Callable[[Silhouettes], Embed], eager: Embed, cyclic: bool) -> None:
        self._capture, self._eager, self._cyclic = capture, eager, cyclic
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, ...], Embed] = OrderedDict()

    def __call__(self, silhouettes: Silhouettes) -> Features:
        """`[B, T, (C,) S, S]` uint8 -> `F [B, s, d]` float32."""
        count, length = silhouettes.shape[:2]
        bucket = GRAPHED.bucket({"batch": count, "frames": length}, self._cyclic)
        if bucket is None:
            return self._eager(silhouettes)
        padded = repeat(silhouettes, {0: bucket["batch"], 1: bucket["frames"]})
        with self._lock:
            run = self._known.pop(padded.shape, None) or self._new(padded)
            self._known[padded.shape] = run
            if len(self._known) > GRAPHS_PER_LANE:
                self._known.popitem(last=False)
            return run(padded)[:count]

    def _new(self, padded: Silhouettes) -> Embed:
        try:
            return self._capture(padded)
        except RuntimeError as error:  # slower, never wrong: some networks synchronise inside, or memory is short
            logger.warning("no CUDA graph for %s: %s", list(padded.shape), str(error).splitlines()[0])
            return self._eager


class TorchRuntime(TorchNetworks):
    """PyTorch with the bundle's weights.

    Args:
        bundle: whose networks to run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; one setting for the whole process, so None leaves it alone.
        name: of PRECISION.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", threads: int | None = None, name: str = "torch") -> None:
        torch = import_torch()
        used = prepare(torch, device, threads)
        backbone: Any = bundle.build_backbone().to(used).requires_grad_(False)
        reranker = bundle.build_reranker()
        spec, kind = bundle.manifest.input, getattr(torch, PRECISION[name])
        if used != "cpu":
            backbone.chunk_frames = FRAMES_PER_CALL["cuda"]  # the model's own value suits the caches of a CPU
            for each in backbone.parameters():
                if each.dim() == 4:
                    each.data = each.data.contiguous(memory_format=torch.channels_last)

        def embed(silhouettes: Any) -> Any:
            # The same steps in the same order as in the exported graph (gaitsdk_export.wrappers); in chunks of frames,
            # so that one long sequence takes no more memory than a short one where the architecture allows it.
            frames = silhouettes.float()[..., spec.cut : spec.size - spec.cut] / spec.scale
            with autocast(torch, used, kind):
                return backbone.forward_sequences(list(frames))

        super().__init__(name, bundle, used, embed, reranker.to(used).requires_grad_(False) if reranker else None)
        self._graphs: Graphs | None = None
        if used != "cpu":
            cyclic = bundle.manifest.length_handling == "cyclic"
            self._graphs = Graphs(self._capture, lambda part: self._call(embed, part), cyclic)

    def embed(self, silhouettes: Silhouettes) -> Features:
        self._open(self._backbone)
        if self._graphs is None:
            return super().embed(silhouettes)
        return embed_in_parts(self._graphs, check_silhouettes(silhouettes, self._bundle), self._bundle, self.device)

    def close(self) -> None:
        super().close()
        self._graphs = None

    def _capture(self, example: Silhouettes) -> Embed:
        """A CUDA graph of the backbone for arrays of this shape."""
        torch, network = self._torch, self._backbone
        with torch.inference_mode(), torch.cuda.device(self.device):
            given = torch.from_numpy(example.copy()).to(self.device)
            beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # libraries choose their kernels and allocate outside of the graph
                for _ in range(2):
                    network(given)
            torch.cuda.current_stream().wait_stream(beside)
            # Other threads may use the GPU meanwhile, the re-ranker's for example.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = network(given)

        def replay(silhouettes: Silhouettes) -> Features:
            with torch.inference_mode(), torch.cuda.device(self.device):
                given.copy_(torch.from_numpy(silhouettes.copy()))
                graph.replay()
                features: Features = found.to("cpu", torch.float32).numpy()
            return features

        return replay


def autocast(torch: Any, device: str, kind: Any) -> contextlib.AbstractContextManager[Any]:
    """Convolutions and matrix products in `kind`, a half type of torch; nothing where it is float32."""
    if kind == torch.float32:
        return contextlib.nullcontext()
    # Without its cache of cast weights: a CUDA graph would go on reading what the cache gave away.
    context: contextlib.AbstractContextManager[Any] = torch.autocast(device.split(":")[0], kind, cache_enabled=False)
    return context


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
