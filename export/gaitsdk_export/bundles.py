"""Exports both networks of a bundle into its `artefacts/`, each beside a record of how, from what, and how well."""

from __future__ import annotations

import hashlib
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaitsdk.bundle import ARTEFACT_SUFFIX, Bundle, Network
from gaitsdk.errors import ExportError, MissingDependencyError, OptionError
from gaitsdk_export.cases import embedder_cases, reranker_cases
from gaitsdk_export.parity import Case, ParityError, ParityReport, Verdict

if TYPE_CHECKING:
    import os

    from gaitsdk_export.wrappers import ExportWrapper

logger = logging.getLogger(__name__)

FORMATS = ("onnx", "torchscript")


@dataclass(frozen=True)
class ExportResult:
    """What became of one artefact.

    Attributes:
        network: "backbone" or "reranker".
        format: "onnx" or "torchscript".
        path: the artefact, or None on FAIL: then the bundle was not touched.
        size_bytes: of the artefact.
        precision: of its weights and arithmetic.
        max_abs, cosine, rank_agreement: worst figures of the comparison; None where there are none.
        latency_ms: median of one walk of 30 frames, or one list of 10, on this machine's CPU.
        verdict: OK, FAIL or SKIPPED.
        reason: why it failed.
        seconds: the whole export took.
    """

    network: str
    format: str
    path: Path | None
    size_bytes: int | None
    precision: str
    max_abs: float | None
    cosine: float | None
    rank_agreement: float | None
    latency_ms: float | None
    verdict: Verdict
    reason: str | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**self.__dict__, "path": None if self.path is None else str(self.path), "verdict": self.verdict.value}

    def raise_for_verdict(self) -> None:
        """Raises ExportError where the verdict is FAIL."""
        if self.verdict is Verdict.FAIL:
            raise ExportError(f"the {self.network} was not exported to {self.format}", got=self.reason)


def export_bundle(
    bundle_path: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
) -> list[ExportResult]:
    """Exports the backbone and, where there is one, the re-ranker.

    An artefact enters the bundle only after its answers were compared; one that fails changes nothing, and the others
    go on. Look at every `verdict`, or call `raise_for_verdict` on each.

    Args:
        bundle_path: `NAME.gait`.
        formats: of "onnx", "torchscript".
        verify: compare answers with the eager network; without, the verdict is SKIPPED (free axes are checked still).
        progress: called with a line of text before each artefact.

    Returns:
        One result per network and format.

    Raises:
        OptionError: an unknown format. BundleError: no bundle there, or its manifest or weights are damaged; damaged
            artefacts are replaced.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    wanted = check_formats(formats)
    bundle = Bundle.load(bundle_path, artefacts=False)
    results = []
    for network, wrapper, cases in _wrappers(bundle):
        for kind in wanted:
            if progress is not None:
                progress(f"exporting {network} to {kind}")
            results.append(_export_one(bundle, network, kind, wrapper, cases if verify else None))
            if results[-1].verdict is Verdict.FAIL:
                logger.error("%s to %s: %s", network, kind, results[-1].reason)
    return results


def check_formats(formats: Sequence[str]) -> list[str]:
    """The formats without repetition.

    Raises:
        OptionError: none, or one that is not known.
    """
    wanted = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    unknown = [each for each in wanted if each not in FORMATS]
    if unknown or not wanted:
        got = ", ".join(map(repr, unknown)) or "nothing"
        raise OptionError("unknown format", where="formats", got=got, expected="one or more of " + ", ".join(FORMATS))
    return wanted


def _wrappers(bundle: Bundle) -> Iterator[tuple[Network, ExportWrapper, Callable[[], Iterator[Case]]]]:
    try:
        from gaitsdk_export.wrappers import EmbedderForExport, RerankerForExport
    except ImportError as error:
        raise MissingDependencyError("PyTorch is not installed", where="export", fix="pip install torch") from error
    spec, strips, dims = bundle.manifest.input, bundle.strips, bundle.dims
    embedder = EmbedderForExport(bundle.build_backbone(), spec.size, spec.channels)
    yield "backbone", embedder, lambda: embedder_cases(spec.size, spec.channels)
    reranker = bundle.build_reranker()
    if reranker is not None:
        yield "reranker", RerankerForExport(reranker, strips, dims), lambda: reranker_cases(strips, dims)


def _export_one(
    bundle: Bundle, network: Network, kind: str, wrapper: ExportWrapper, cases: Callable[[], Iterator[Case]] | None
) -> ExportResult:
    started = time.perf_counter()
    convert, load = _converter(kind)
    report, reason, path, size, latency = None, None, None, None, None
    # Beside the bundle: the same file system, so that the artefact moves into it in one step.
    with tempfile.TemporaryDirectory(prefix=".gaitsdk-export-", dir=bundle.path.resolve().parent) as folder:
        temporary = Path(folder) / f"{network}{ARTEFACT_SUFFIX[kind]}"
        try:
            metadata = {"fingerprint": bundle.fingerprint}
            report = convert(wrapper, temporary, cases=None if cases is None else cases(), metadata=metadata)
        except ParityError as error:
            report, reason = error.report, str(error)
        except MissingDependencyError:
            raise  # nothing is wrong with the network
        except ExportError as error:
            reason = str(error)
        if reason is None:
            latency = _latency(load(temporary), wrapper)
            size = temporary.stat().st_size
            record = _record(bundle, network, kind, wrapper, temporary, report, latency)
            path = bundle.add_artefact(network, kind, temporary, record)
    return ExportResult(
        network=network,
        format=kind,
        path=path,
        size_bytes=size,
        precision="fp32",
        max_abs=report.max_abs if report else None,
        cosine=report.cosine if report else None,
        rank_agreement=report.rank_agreement if report else None,
        latency_ms=latency,
        verdict=Verdict.FAIL if reason else report.verdict if report else Verdict.SKIPPED,
        reason=reason,
        seconds=time.perf_counter() - started,
    )


def _converter(kind: str) -> tuple[Callable[..., ParityReport | None], Callable[..., Any]]:
    """(export function, function that loads what it wrote)."""
    if kind == "onnx":
        from gaitsdk_export.to_onnx import onnx_network, to_onnx

        return to_onnx, onnx_network
    from gaitsdk_export.to_torchscript import to_torchscript, torchscript_network

    return to_torchscript, torchscript_network


def _latency(network: Callable[..., Any], wrapper: ExportWrapper) -> float:
    """Median of 5 calls with one item, in ms, after one to warm up."""
    if wrapper.role == "backbone":
        case = next(iter(embedder_cases(wrapper.sizes["size"], wrapper.sizes["channels"], (1,), (30,))))
    else:
        case = next(iter(reranker_cases(wrapper.sizes["strips"], wrapper.sizes["dims"], (1,), (10,))))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        network(*case.inputs)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) * 1e3


def _record(
    bundle: Bundle,
    network: Network,
    kind: str,
    wrapper: ExportWrapper,
    artefact: Path,
    report: ParityReport | None,
    latency: float,
) -> dict[str, Any]:
    """The contents of `<artefact>.export.json`."""
    example = dict(zip(wrapper.input_names, wrapper.example(), strict=True))
    inputs = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [wrapper.dynamic_axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for name, tensor in example.items()
    }
    worst = report.to_dict() if report else {"verdict": Verdict.SKIPPED.value}
    return {
        "format": kind,
        "network": network,
        "task": wrapper.task,
        "precision": "fp32",
        "fingerprint": bundle.fingerprint,
        "sha256": hashlib.sha256(artefact.read_bytes()).hexdigest(),
        "source": f"{network}.safetensors",
        "source_sha256": bundle.manifest.files[f"{network}.safetensors"].sha256,
        "inputs": inputs,
        "outputs": {name: {"shape": list(shape)} for name, shape in wrapper.output_shapes.items()},
        "versions": _versions(kind),
        "verdict": worst["verdict"],
        "parity": {key: worst.get(key) for key in ("max_abs", "cosine", "rank_agreement", "tolerance")},
        "cases": len(report.cases) if report else 0,
        "latency_ms": latency,
        "machine": platform.machine(),
        "reproduce": f"gaitsdk export {bundle.path.name} --to {kind}",
    }


def _versions(kind: str) -> dict[str, Any]:
    import torch

    import gaitsdk

    versions: dict[str, Any] = {"gaitsdk": gaitsdk.__version__, "torch": torch.__version__}
    if kind == "onnx":
        import onnx
        import onnxruntime
        import onnxscript

        from gaitsdk_export.to_onnx import OPSET

        versions |= {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
        versions |= {"onnxruntime": onnxruntime.__version__, "opset": OPSET}
    return versions
