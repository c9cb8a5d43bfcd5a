"""Runtimes: what executes a bundle's networks. `open_runtime` picks one; all of them give the same answers.

torch        PyTorch: any device that torch has; needs no artefact
torch-bf16   the same with the backbone's convolutions in half precision; only when asked for by name
torch-fp16   likewise
torchscript  the traced artefact (legacy, for those who serve it)
onnx         ONNX Runtime: the default, needs no torch
onnx-int8    the same with the backbone in INT8, where the bundle has one; only when asked for by name
tensorrt     engines of TensorRT or TensorRT for RTX, on the GPU that they were built for; only when asked for by name
"""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import TYPE_CHECKING

from gaitsdk.errors import OptionError, RuntimeUnavailableError, UnknownRuntimeError
from gaitsdk.runtimes.protocol import NetworkRuntime, has_artefacts
from gaitsdk.slips import did_you_mean

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle

__all__ = ["BY_NAME", "RUNTIMES", "NetworkRuntime", "open_runtime"]

logger = logging.getLogger(__name__)

#: Runtimes of this process, in the order in which "auto" tries them.
RUNTIMES = ("onnx", "torchscript", "torch")
#: Those that are only used when asked for: features differ a little, or an engine fits one machine.
BY_NAME = ("onnx-int8", "torch-bf16", "torch-fp16", "tensorrt")


def open_runtime(
    bundle: Bundle,
    runtime: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    reranker_threads: int | None = None,
) -> NetworkRuntime:
    """Opens a bundle's networks for use.

    Args:
        bundle: from `Bundle.load`.
        runtime: one of RUNTIMES or BY_NAME, or "auto": the first of RUNTIMES whose artefacts and package are there, and
            that has a GPU where `device` asks for one. "auto" never skips an artefact that is there but damaged.
        device: "cpu", "cuda", "cuda:N", or "auto": the GPU where the chosen runtime has one, else the CPU.
            A GPU that is asked for by name is used or refused, never replaced by the CPU.
        threads: CPU threads of the backbone; default `min(4, cores)` (torch: torch's own setting).
        reranker_threads: CPU threads of the re-ranker; default 1, because its calls are so short that waking a second
            thread on a busy machine costs far more than it saves. torch has one setting for both: `threads`.

    Returns:
        A `NetworkRuntime`; `.name` and `.device` say what is really used.

    Raises:
        UnknownRuntimeError: no runtime has this name.
        RuntimeUnavailableError: the artefact or the device is missing.
        MissingDependencyError: the package is not installed; the message has the pip line.
        BundleError: an artefact is damaged or stale.
        OptionError: `device` or a number of threads makes no sense.
    """
    _check_options(device, threads, reranker_threads)
    chosen = _choose(bundle, device) if runtime == "auto" else runtime
    if chosen in ("onnx", "onnx-int8"):
        from gaitsdk.runtimes.onnx_runtime import OnnxRuntime

        return OnnxRuntime(bundle, device, threads, reranker_threads, kind=chosen)
    if chosen == "torchscript":
        from gaitsdk.runtimes.torchscript_runtime import TorchScriptRuntime

        return TorchScriptRuntime(bundle, device, threads)
    if chosen in ("torch", "torch-bf16", "torch-fp16"):
        from gaitsdk.runtimes.torch_runtime import TorchRuntime

        return TorchRuntime(bundle, device, threads, chosen)
    if chosen == "tensorrt":
        from gaitsdk.runtimes.tensorrt_runtime import TensorRTRuntime

        return TensorRTRuntime(bundle, device)
    raise _refusal(chosen)


def _check_options(device: str, threads: int | None, reranker_threads: int | None) -> None:
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise OptionError("unknown device", where="device", got=repr(device), expected="auto, cpu, cuda or cuda:N")
    for name, value in (("threads", threads), ("reranker_threads", reranker_threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024):
            raise OptionError("not a number of threads", where=name, got=repr(value), expected="1 to 1024, or None")


def _choose(bundle: Bundle, device: str) -> str:
    """The first runtime that this bundle and this machine can serve on `device`."""
    from gaitsdk.runtimes.onnx_runtime import has_cuda

    wants_gpu = device.startswith("cuda")
    if has_artefacts(bundle, "onnx") and _installed("onnxruntime") and (has_cuda() or not wants_gpu):
        return "onnx"
    if not _installed("torch"):
        raise RuntimeUnavailableError(
            f"no runtime here can execute the bundle on {device}",
            where=str(bundle.path),
            got=f"onnx artefacts: {has_artefacts(bundle, 'onnx')}, onnxruntime: {_installed('onnxruntime')}, torch: no",
            fix="pip install torch (then: gaitsdk export to make artefacts), or use a bundle that has its ONNX",
        )
    return "torchscript" if has_artefacts(bundle, "torchscript") else "torch"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _refusal(name: str) -> UnknownRuntimeError | RuntimeUnavailableError:
    if name == "triton":
        return RuntimeUnavailableError(
            "a Triton server is not a runtime of this process",
            where="runtime 'triton'",
            fix="Recognizer.connect('grpc://HOST:8001')",
        )
    known = ["auto", *RUNTIMES, *BY_NAME]
    return UnknownRuntimeError(
        "no runtime has this name",
        where="runtime",
        got=repr(name),
        expected="one of " + ", ".join(known),
        fix=did_you_mean(name, known) or "runtime='auto'",
    )
