"""What works on this machine, found by trying it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

from gaitsdk import __version__
from gaitsdk.bundle import Bundle
from gaitsdk.errors import GaitError

_PACKAGES = ("numpy", "onnxruntime", "torch", "onnx", "tritonclient", "tensorrt", "pandas")


def examine() -> dict[str, str]:
    """Finding by name: versions, the shipped bundle, each runtime after one real embedding, the server."""
    findings = {"gaitsdk": __version__, "python": f"{platform.python_version()} on {platform.platform()}"}
    findings |= {package: _version(package) for package in _PACKAGES}
    try:
        bundle = Bundle.load()
        findings["shipped bundle"] = f"{bundle.manifest.architecture.name}, model {bundle.fingerprint[:12]}"
    except GaitError as error:
        findings["shipped bundle"] = f"unusable: {error}"
        return findings
    for runtime in ("onnx", "torchscript", "torch"):
        findings[f"runtime {runtime}"] = _try_runtime(bundle, runtime)
    found = os.environ.get("TRITON_SERVER") or shutil.which("tritonserver")
    findings["tritonserver"] = found or "not on PATH; gaitsdk serve also looks into .triton and for nvidia-pytriton"
    return findings


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _try_runtime(bundle: Bundle, name: str) -> str:
    from gaitsdk import synthetic
    from gaitsdk.runtimes import open_runtime

    try:
        runtime = open_runtime(bundle, runtime=name)
        features = runtime.embed(synthetic.sequence(1)[None])
        runtime.close()
    except GaitError as error:
        return f"no: {error}"
    return f"yes, on {runtime.device}: one sequence gives {features.shape[1]} strips of {features.shape[2]}"
