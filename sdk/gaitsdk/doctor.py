"""What works on this machine, found by trying it."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from gaitsdk import __version__
from gaitsdk.bundle import ARTEFACT_SUFFIX, Bundle, Network
from gaitsdk.errors import GaitError
from gaitsdk.runtimes import BY_NAME, RUNTIMES, open_runtime
from gaitsdk.runtimes.onnx_runtime import cores, import_onnxruntime
from gaitsdk.runtimes.protocol import read_artefact
from gaitsdk.runtimes.tensorrt_runtime import ENGINE_FORMATS, import_tensorrt, machine, misfits
from gaitsdk.runtimes.torch_runtime import import_torch

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "onnx", "onnxscript", "tritonclient", "pandas")
_NETWORKS: tuple[Network, ...] = ("backbone", "reranker")


def examine(bundle: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Finding by name: versions, devices, the bundle (None = the shipped one), whether its compiled networks fit this
    machine, each runtime after one real embedding, the server."""
    findings = {"gaitsdk": __version__, "python": f"{platform.python_version()} on {platform.platform()}"}
    findings |= {package: _version(package) for package in _PACKAGES}
    for format in ENGINE_FORMATS:
        findings[format] = _try(lambda format=format: str(import_tensorrt(format).__version__))
    findings["CPU"] = f"{cores()} of {os.cpu_count()} cores may be used"
    findings["GPU"] = _try(_gpus)
    findings["providers of ONNX Runtime"] = _try(lambda: ", ".join(import_onnxruntime().get_available_providers()))
    title = "shipped bundle" if bundle is None else str(bundle)
    try:
        loaded = Bundle.load(bundle)
    except GaitError as error:
        findings[title] = f"unusable: {error}"
        return findings | {"tritonserver": _server()}
    findings[title] = f"{loaded.manifest.architecture.name}, model {loaded.fingerprint[:12]}"
    findings |= _artefacts(loaded)
    for runtime in (*RUNTIMES, *BY_NAME):
        findings[f"runtime {runtime}"] = _try(lambda runtime=runtime: _embed(loaded, runtime))
    return findings | {"tritonserver": _server()}


def _try(attempt: Any) -> str:
    """What it found, or why not."""
    try:
        return str(attempt())
    except GaitError as error:
        return f"no: {error}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    torch = import_torch()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = (f"cuda:{i} {torch.cuda.get_device_name(i)}, {_capability(torch, i)}" for i in range(count))
    return "; ".join(named) or f"none that torch {torch.__version__} can use"


def _capability(torch: Any, index: int) -> str:
    return "compute capability {}.{}".format(*torch.cuda.get_device_capability(index))


def _artefacts(bundle: Bundle) -> dict[str, str]:
    """By file: was it made from these weights, how were its answers judged, does it fit this machine."""
    found = {}
    for kind, suffix in ARTEFACT_SUFFIX.items():
        for network in _NETWORKS:
            if bundle.artefact(network, kind) is not None:
                text = _try(lambda network=network, kind=kind: _artefact(bundle, network, kind))
                found[f"artefact {network}{suffix}"] = text
    return found


def _artefact(bundle: Bundle, network: Network, kind: str) -> str:
    record = read_artefact(bundle, network, kind).record
    about = f"{record.get('precision')}, verdict {record.get('verdict')}"
    built = record.get("engine")
    if not isinstance(built, dict):
        return f"{about}; fits any machine"
    trt, torch = import_tensorrt(str(record["format"])), import_torch()
    if not torch.cuda.is_available():
        return f"{about}; does not fit: an engine, and torch finds no GPU here"
    wrong = misfits(built, machine(trt, torch, "cuda:0"))
    return f"{about}; " + (f"does not fit: {'; '.join(wrong)}" if wrong else "fits this GPU")


def _embed(bundle: Bundle, name: str) -> str:
    from gaitsdk import synthetic

    runtime = open_runtime(bundle, runtime=name)
    walk, spec = synthetic.sequence(1), bundle.manifest.input
    factor = spec.size // walk.shape[-1]
    walk = walk.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = walk if spec.channels == 1 else walk[:, None].repeat(spec.channels, axis=1)
    features = runtime.embed(frames[None])
    used = getattr(runtime, "providers", None)
    runtime.close()
    by = f" by {', '.join(used)}" if used else ""
    return f"yes, on {runtime.device}{by}: one sequence gives {features.shape[1]} strips of {features.shape[2]}"


def _server() -> str:
    """The tritonserver that `gaitsdk serve` would use, told by the package that starts it."""
    found = [str(each.load()()) for each in metadata.entry_points(group="gaitsdk.doctor", name="tritonserver")]
    return found[0] if found else "not looked for: gaitsdk_export is not installed"
