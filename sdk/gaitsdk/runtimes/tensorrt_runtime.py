"""TensorRT: runs the engines of a bundle, of `tensorrt` (10, 11) and of TensorRT for RTX alike."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.bundle import PRECISIONS, kind_of
from gaitsdk.errors import BundleError, MissingDependencyError, RuntimeUnavailableError
from gaitsdk.runtimes.protocol import (
    Features,
    Silhouettes,
    check_pairs,
    check_silhouettes,
    embed_in_parts,
    has_artefacts,
    read_artefact,
    rerank_in_parts,
)
from gaitsdk.runtimes.tensorrt_engines import EngineNetwork, Limits
from gaitsdk.runtimes.torch_runtime import import_torch, pick_device

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle, Network

ENGINE_FORMATS = ("tensorrt", "tensorrt-rtx")
#: Modules to try, and the pip line. The wheels of TensorRT for RTX without the front package hold the bindings alone.
_MODULES = {
    "tensorrt": (("tensorrt",), "pip install tensorrt"),
    "tensorrt-rtx": (
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        "pip install --no-deps tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
    ),
}


def import_tensorrt(format: str) -> Any:
    """The module that builds and runs engines of a format.

    Raises:
        MissingDependencyError: it is not installed, or its libraries cannot be loaded.
    """
    modules, pip = _MODULES[format]
    causes = []
    for name in modules:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library that it needs is missing
            causes.append(f"{name}: {error}")
    raise MissingDependencyError(
        "TensorRT is not installed" if format == "tensorrt" else "TensorRT for RTX is not installed",
        where=format,
        got="; ".join(causes),
        fix=pip,
    )


@dataclass(frozen=True)
class Machine:
    """What an engine must have been built for."""

    version: str
    compute_capability: str
    gpu: str


def machine(trt: Any, torch: Any, device: str) -> Machine:
    """This machine as an engine sees it; `device` is "cuda:N"."""
    index = int(device.partition(":")[2] or 0)
    major, minor = torch.cuda.get_device_capability(index)
    return Machine(str(trt.__version__), f"{major}.{minor}", str(torch.cuda.get_device_name(index)))


def misfits(built: Mapping[str, Any], here: Machine) -> list[str]:
    """What keeps an engine from running here, a phrase each; none where it fits.

    Args:
        built: the part "engine" of its record: builder, builder_version, compute_capabilities, gpu.
        here: the machine.
    """
    found = []
    if built.get("builder_version") != here.version:
        found.append(f"built by {built.get('builder')} {built.get('builder_version')}, here is {here.version}")
    capabilities = [f"{int(each) // 10}.{int(each) % 10}" for each in built.get("compute_capabilities", [])]
    if here.compute_capability not in capabilities:
        listed = ", ".join(capabilities) or "unknown"
        found.append(f"built for compute capability {listed}, this GPU has {here.compute_capability}")
    # Engines of TensorRT are tuned on one GPU; those of TensorRT for RTX are finished on the GPU that runs them.
    if built.get("gpu") is not None and built["gpu"] != here.gpu:
        found.append(f"built on {built['gpu']}, this GPU is {here.gpu}")
    return found


class TensorRTRuntime:
    """Runs `artefacts/*.plan`. Several threads may call at once; each engine serves two of them side by side.

    Args:
        bundle: whose engines to run; of several precisions the most exact, of both builders TensorRT's own.
        device: "auto", "cuda" or "cuda:N".

    Raises:
        RuntimeUnavailableError: no engine in the bundle, no GPU, or an engine that was built for another machine.
        MissingDependencyError: the package that the engines need is not installed, or torch is not.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        format, precision = _choose(bundle)
        trt = import_tensorrt(format)
        torch = import_torch()
        self.device = _gpu(torch, device)
        self.format, self.precision = format, precision
        self._bundle = bundle
        cyclic = bundle.manifest.length_handling == "cyclic"
        open_one = _Opener(bundle, trt, torch, format, precision, self.device)
        self._backbone: EngineNetwork | None = open_one("backbone", cyclic)
        self._reranker = None if bundle.manifest.reranker is None else open_one("reranker", cyclic)

    def embed(self, silhouettes: Silhouettes) -> Features:
        network = self._open(self._backbone)
        batch = check_silhouettes(silhouettes, self._bundle)
        return embed_in_parts(lambda part: _float32(network(part)[0]), batch, self._bundle, self.device)

    def rerank(self, probe: Features, candidates: Features) -> Features:
        probes, lists = check_pairs(probe, candidates, self._bundle)
        network = self._open(self._reranker)
        return rerank_in_parts(lambda p, c: _float32(network(p, c)[0]), probes, lists, self._bundle, self.device)

    def close(self) -> None:
        self._backbone = self._reranker = None

    def _open(self, network: EngineNetwork | None) -> EngineNetwork:
        if network is None:
            raise RuntimeUnavailableError("the runtime was closed", where="runtime 'tensorrt'", fix="open it again")
        return network


def _float32(array: NDArray[Any]) -> Features:
    return array.astype(np.float32, copy=False)


def _choose(bundle: Bundle) -> tuple[str, str]:
    for precision in PRECISIONS:
        for format in ENGINE_FORMATS:
            if has_artefacts(bundle, kind_of(format, precision)):
                return format, precision
    raise RuntimeUnavailableError(
        "the bundle has no TensorRT engines",
        where=str(bundle.path),
        fix=f"gaitsdk export {bundle.path} --to tensorrt (on the GPU that will run them), or another runtime",
    )


def _gpu(torch: Any, device: str) -> str:
    used = pick_device(torch, "cuda:0" if device == "auto" else device)
    if used == "cpu":
        raise RuntimeUnavailableError(
            "TensorRT engines run on NVIDIA GPUs only",
            where=f"device {device!r}",
            fix="device='cuda', or runtime='onnx'",
        )
    return used


class _Opener:
    """Opens the engines of one bundle, once their records say that they fit."""

    def __init__(self, bundle: Bundle, trt: Any, torch: Any, format: str, precision: str, device: str) -> None:
        self.bundle, self.trt, self.torch, self.device = bundle, trt, torch, device
        self.format, self.precision = format, precision

    def __call__(self, network: Network, cyclic: bool) -> EngineNetwork:
        artefact = read_artefact(self.bundle, network, kind_of(self.format, self.precision))
        fix = f"gaitsdk export {self.bundle.path} --to {self.format} --precision {self.precision}"
        built = artefact.record.get("engine")
        if not isinstance(built, dict):
            raise BundleError("the engine's record does not say what it was built for", where=artefact.path, fix=fix)
        wrong = misfits(built, machine(self.trt, self.torch, self.device))
        if wrong:
            raise RuntimeUnavailableError(
                "the engine was built for another machine",
                where=artefact.path,
                got="; ".join(wrong),
                fix=f"build it here: {fix}, or runtime='torch'",
            )
        profiles = [Limits.from_record(each) for each in built["profiles"]]
        return EngineNetwork(self.trt, self.torch, artefact.content, profiles, self.device, cyclic, where=artefact.path)
