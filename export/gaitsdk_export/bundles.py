"""Exports the networks of a bundle into its `artefacts/`, each beside a record of how, from what, and how well."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaitsdk.bundle import ARTEFACT_SUFFIX, Bundle, Network
from gaitsdk.errors import ExportError, MissingDependencyError, OptionError
from gaitsdk_export.engine_cache import EngineCache
from gaitsdk_export.exporters import Made, Options, Skipped, Source
from gaitsdk_export.formats import DEFAULT_FORMATS, FORMATS, Job, Sizes, parse_capabilities, plan
from gaitsdk_export.parity import ParityError, ParityReport, Verdict
from gaitsdk_export.quantised import calibration_walks
from gaitsdk_export.records import latency, record, script

if TYPE_CHECKING:
    import os

    from gaitsdk_export.task import TaskFigures, Trial
    from gaitsdk_export.wrappers import ExportWrapper

__all__ = ["FORMATS", "ExportResult", "export_bundle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportResult:
    """What became of one artefact.

    Attributes:
        network: "backbone" or "reranker".
        format: "onnx", "torchscript", "tensorrt" or "tensorrt-rtx".
        path: the artefact; None where there is none: then the bundle was not touched.
        size_bytes: of the artefact.
        precision: of its weights and arithmetic.
        max_abs, cosine, rank_agreement: worst figures of the comparison; None where there are none.
        latency_ms: median of one walk of 30 frames, or one list of 10, on this machine; None where it cannot run here.
        verdict: OK, FAIL, or SKIPPED: not made, or made and not compared.
        reason: why it failed, or was skipped.
        seconds: the whole export took.
        task: figures of the verdict on people, where it was asked for.
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
    task: TaskFigures | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.__dict__,
            "path": None if self.path is None else str(self.path),
            "verdict": self.verdict.value,
            "task": None if self.task is None else self.task.to_dict(),
        }

    def raise_for_verdict(self) -> None:
        """Raises ExportError where the verdict is FAIL."""
        if self.verdict is Verdict.FAIL:
            raise ExportError(f"the {self.network} was not exported to {self.format}", got=self.reason)


def export_bundle(
    bundle_path: str | os.PathLike[str],
    formats: Sequence[str] = DEFAULT_FORMATS,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
    *,
    precisions: Sequence[str] = ("fp32",),
    sizes: Sizes | None = None,
    capabilities: Sequence[str | int] | None = None,
    task: bool = False,
    cache: EngineCache | None = None,
    calibration: Path | None = None,
    workspace_mib: int | None = None,
) -> list[ExportResult]:
    """Exports the backbone and, where there is one, the re-ranker.

    An artefact enters the bundle only after its answers were compared; one that fails changes nothing, and the others
    go on. Look at every `verdict`, or call `raise_for_verdict` on each.

    Args:
        bundle_path: `NAME.gait`.
        formats: of "onnx", "torchscript", "tensorrt", "tensorrt-rtx".
        verify: compare answers with the eager network; without, the verdict is SKIPPED (free axes are checked still).
        progress: called with a line of text before each artefact, and while an engine is built.
        precisions: of "fp32", "fp16", "bf16", "int8" (the backbone's; always judged as `task` says).
        sizes: that engines are built for.
        capabilities: that TensorRT for RTX builds for, for example (75, 89); default all that it can.
        task: judge Rank-1 and the order of the first ten over 100 synthetic people, too.
        cache: of engines.
        calibration: tree of walks that INT8 takes its scales from; default synthetic walkers.
        workspace_mib: scratch memory that an engine may take; default what the builder takes (docs/export.md).

    Returns:
        One result per network, format and precision.

    Raises:
        OptionError: an unknown format or precision, or impossible sizes. BundleError: no bundle there, or its manifest
            or weights are damaged; damaged artefacts are replaced. DatasetError: no walks in `calibration`.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
        ExportError: the bundle cannot be written.
    """
    jobs = plan(formats, precisions)
    tell = progress or (lambda _line: None)
    bundle = Bundle.load(bundle_path, artefacts=False)
    int8 = any(job.precision == "int8" for job in jobs)
    walks = calibration_walks(bundle, calibration) if int8 else ()
    able = parse_capabilities(capabilities)
    options = Options(verify, sizes or Sizes(), able, cache or EngineCache(), tell, walks, calibration, workspace_mib)
    try:
        # Beside the bundle: the same file system, so that an artefact moves into it in one step.
        with tempfile.TemporaryDirectory(prefix=".gaitsdk-export-", dir=bundle.path.resolve().parent) as folder:
            sources = [Source(bundle, name, wrapper, Path(folder), options) for name, wrapper in _wrappers(bundle)]
            trial = _trial(sources) if task or (verify and int8) else None
            judged = [job for job in jobs if task or job.precision == "int8"]
            return [_export_one(source, job, trial if job in judged else None) for source in sources for job in jobs]
    except OSError as error:
        raise ExportError(
            "the artefacts cannot be written",
            where=str(error.filename or bundle.path),
            got=error.strerror or str(error),
            fix="a folder that you may write, with free space for the artefacts; those listed in the bundle are whole",
        ) from error


def _wrappers(bundle: Bundle) -> Iterator[tuple[Network, ExportWrapper]]:
    try:
        from gaitsdk_export.wrappers import EmbedderForExport, RerankerForExport
    except ImportError as error:
        raise MissingDependencyError("PyTorch is not installed", where="export", fix="pip install torch") from error
    spec, strips, dims = bundle.manifest.input, bundle.strips, bundle.dims
    yield "backbone", EmbedderForExport(bundle.build_backbone(), spec.size, spec.channels)
    reranker = bundle.build_reranker()
    if reranker is not None:
        yield "reranker", RerankerForExport(reranker, strips, dims)


def _trial(sources: Sequence[Source]) -> Trial:
    from gaitsdk_export import task

    eager = {each.network: each.eager for each in sources}
    bundle = sources[0].bundle
    spec = bundle.manifest.input
    sizes = (spec.size, spec.channels, bundle.metric, task.IDENTITIES, task.FRAMES)
    return task.Trial(eager["backbone"], eager.get("reranker"), *sizes)


def _export_one(source: Source, job: Job, trial: Trial | None) -> ExportResult:
    started = time.perf_counter()
    name = job.format if job.precision == "fp32" else f"{job.format}, {job.precision}"
    source.options.progress(f"exporting {source.network} to {name}")
    made: Made | None = None
    report: ParityReport | None = None
    task, verdict, reason = None, Verdict.FAIL, None
    try:
        made = source.make(job)
        report = made.report
        verdict, reason = (Verdict.OK if report else Verdict.SKIPPED), made.reason
        if trial is not None and made.run is not None:
            task = trial.judge(source.wrapper.role, made.run, job.precision)
            if task.reasons:
                made, verdict, reason = None, Verdict.FAIL, "over synthetic people: " + "; ".join(task.reasons)
    except Skipped as why:
        verdict, reason = Verdict.SKIPPED, str(why)
    except ParityError as error:
        report, reason = error.report, str(error)
    except (MissingDependencyError, OptionError):
        raise  # nothing is wrong with the network
    except ExportError as error:
        reason = str(error)
    if verdict is Verdict.FAIL:
        logger.error("%s to %s: %s", source.network, name, reason)
    path, size, milliseconds = None, None, None
    if made is not None:
        milliseconds = latency(source, made)
        size = made.path.stat().st_size
        path = _add(source, job, made, record(source, job, made, verdict, milliseconds, task))
    return ExportResult(
        network=source.network,
        format=job.format,
        path=path,
        size_bytes=size,
        precision=job.precision,
        max_abs=report.max_abs if report else None,
        cosine=report.cosine if report else None,
        rank_agreement=report.rank_agreement if report else None,
        latency_ms=milliseconds,
        verdict=verdict,
        reason=reason,
        seconds=time.perf_counter() - started,
        task=task,
    )


def _add(source: Source, job: Job, made: Made, entry: dict[str, Any]) -> Path:
    """Puts the artefact into the bundle. A copy: engines are still to be built from the graph."""
    import shutil

    bundle, name = source.bundle, f"{source.network}{ARTEFACT_SUFFIX[job.kind]}"
    copy = made.path.with_name(f"copy-{made.path.name}")
    shutil.copyfile(made.path, copy)
    return bundle.add_artefact(source.network, job.kind, copy, entry, script(entry, name))
