"""What lies beside an artefact: `export.json` (how, from what, how well) and `reproduce.sh` (makes it again)."""

from __future__ import annotations

import hashlib
import platform
import shlex
import statistics
import time
from typing import TYPE_CHECKING, Any

from gaitsdk_export.cases import embedder_cases, reranker_cases
from gaitsdk_export.formats import Job
from gaitsdk_export.parity import Verdict

if TYPE_CHECKING:
    from gaitsdk_export.exporters import Made, Options, Source
    from gaitsdk_export.task import TaskFigures


def record(
    source: Source, job: Job, made: Made, verdict: Verdict, latency: float | None, task: TaskFigures | None
) -> dict[str, Any]:
    """The contents of `<artefact>.export.json`."""
    bundle, wrapper, report = source.bundle, source.wrapper, made.report
    example = dict(zip(wrapper.input_names, wrapper.example(), strict=True))
    inputs = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [wrapper.dynamic_axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for name, tensor in example.items()
    }
    worst = report.to_dict() if report else {}
    return {
        "format": job.format,
        "network": source.network,
        "task": wrapper.task,
        "precision": job.precision,
        "fingerprint": bundle.fingerprint,
        "sha256": hashlib.sha256(made.path.read_bytes()).hexdigest(),
        "source": f"{source.network}.safetensors",
        "source_sha256": bundle.manifest.files[f"{source.network}.safetensors"].sha256,
        "inputs": inputs,
        "outputs": {name: {"shape": list(shape)} for name, shape in wrapper.output_shapes.items()},
        "versions": versions(job),
        "verdict": verdict.value,
        "reason": made.reason,
        "parity": {key: worst.get(key) for key in ("max_abs", "relative", "cosine", "rank_agreement", "tolerance")},
        "cases": len(report.cases) if report else 0,
        "people": task.to_dict() if task else None,
        "latency_ms": latency,
        "machine": platform.machine(),
        "reproduce": command(bundle.path.name, job, source.options),
        **made.notes,
    }


def command(bundle: str, job: Job, options: Options) -> str:
    """The line that makes one artefact again."""
    sizes, capabilities = options.sizes, options.capabilities
    words = ["gaitsdk", "export", bundle, "--to", job.format]
    if job.precision != "fp32":
        words += ["--precision", job.precision]
    if job.precision == "int8" and options.calibration is not None:
        words += ["--calibration", str(options.calibration)]
    if job.format in ("tensorrt", "tensorrt-rtx"):
        words += ["--batch", str(sizes.batch), "--frames", ",".join(map(str, sizes.frames))]
        if sizes.candidates is not None:
            words += ["--candidates", str(sizes.candidates)]
        if capabilities and job.format == "tensorrt-rtx":
            words += ["--sm", ",".join(map(str, capabilities))]
        if options.workspace_mib is not None:
            words += ["--workspace", str(options.workspace_mib)]
    return shlex.join(words)


def script(entry: dict[str, Any], name: str) -> str:
    """The contents of `<artefact>.reproduce.sh`.

    Args:
        entry: of `record`.
        name: the artefact's file.
    """
    words = shlex.split(entry["reproduce"])
    words[2] = "$bundle"
    line = " ".join('"$bundle"' if each == "$bundle" else shlex.quote(each) for each in words)
    made_with = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
    return f"""#!/bin/sh
# Makes {name} of this bundle again, from {entry["source"]}.
# Made with {made_with}.
set -eu
bundle=$(cd "$(dirname "$0")/.." && pwd)
{line}
echo "was {entry["sha256"]}"
sha256sum "$bundle/artefacts/{name}"
"""


def versions(job: Job) -> dict[str, Any]:
    """Of everything that had a hand in it."""
    import torch

    import gaitsdk

    found: dict[str, Any] = {"gaitsdk": gaitsdk.__version__, "torch": torch.__version__}
    if job.format != "torchscript":
        import onnx
        import onnxruntime
        import onnxscript

        from gaitsdk_export.half import BF16_OPSET
        from gaitsdk_export.to_onnx import OPSET

        found |= {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
        found |= {"onnxruntime": onnxruntime.__version__, "opset": BF16_OPSET if job.precision == "bf16" else OPSET}
    if job.format in ("tensorrt", "tensorrt-rtx"):
        from gaitsdk.runtimes.tensorrt_runtime import import_tensorrt

        found[job.format] = str(import_tensorrt(job.format).__version__)
    return found


def latency(source: Source, made: Made) -> float | None:
    """Median of 5 calls with one item (a walk of 30 frames, a list of 10), in ms, after one to warm up."""
    if made.run is None or made.emulated:
        return None
    sizes = source.wrapper.sizes
    if source.wrapper.role == "backbone":
        case = next(iter(embedder_cases(sizes["size"], sizes["channels"], (1,), (30,))))
    else:
        case = next(iter(reranker_cases(sizes["strips"], sizes["dims"], (1,), (10,))))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        made.run(*case.inputs)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) * 1e3
