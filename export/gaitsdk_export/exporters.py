"""One network of a bundle, exported to any format: what is made on the way (the ONNX graph) is made once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaitsdk.bundle import ARTEFACT_SUFFIX, Bundle, Network
from gaitsdk.errors import ExportError, MissingDependencyError, RuntimeUnavailableError
from gaitsdk.runtimes.tensorrt_engines import EngineNetwork, Limits
from gaitsdk.runtimes.tensorrt_runtime import ENGINE_FORMATS, import_tensorrt
from gaitsdk_export import parity
from gaitsdk_export.cases import embedder_cases, reranker_cases
from gaitsdk_export.engine_cache import EngineCache
from gaitsdk_export.formats import Job, Sizes
from gaitsdk_export.parity import BATCHES, Case, ParityReport

if TYPE_CHECKING:
    from gaitsdk_export.quantised import Walks
    from gaitsdk_export.to_tensorrt import Target
    from gaitsdk_export.wrappers import ExportWrapper

Run = parity.Network


class Skipped(Exception):
    """This artefact cannot be made here, and nothing is wrong with the network; the message says why."""


@dataclass(frozen=True)
class Made:
    """An artefact before it enters the bundle.

    Attributes:
        path: of the file.
        report: of the comparison with the eager network, or None.
        run: executes it here, for comparisons; None where nothing here can.
        notes: further entries of its record.
        reason: why nobody compared; None where the report says all.
        emulated: `run` computes the same numbers in another way, so that its speed says nothing.
    """

    path: Path
    report: ParityReport | None
    run: Run | None
    notes: dict[str, Any]
    reason: str | None = None
    emulated: bool = False


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        verify: compare answers with the eager network.
        sizes: that engines are built for.
        capabilities: that TensorRT for RTX builds for; none = all that it can.
        walks: that INT8 takes its scales from. calibration: the tree that they come from; None = synthetic ones.
        cache: of engines.
        progress: called with lines of text.
        workspace_mib: scratch memory that an engine may take; None = the builder's own limit.
    """

    verify: bool
    sizes: Sizes
    capabilities: tuple[int, ...]
    cache: EngineCache
    progress: Callable[[str], None]
    walks: Walks = ()
    calibration: Path | None = None
    workspace_mib: int | None = None


class Source:
    """A network with its weights, as every exporter wants it.

    Args:
        bundle: whose network.
        network: "backbone" or "reranker".
        wrapper: the network as a graph.
        folder: for files on the way.
        options: how to export.
    """

    def __init__(
        self, bundle: Bundle, network: Network, wrapper: ExportWrapper, folder: Path, options: Options
    ) -> None:
        self.bundle, self.network, self.wrapper = bundle, network, wrapper
        self.folder, self.options = folder, options
        self._graphs: dict[str, Made | ExportError] = {}

    def make(self, job: Job) -> Made:
        """Exports.

        Raises:
            ExportError: it failed. Skipped: it cannot be made here. MissingDependencyError: a package for ONNX is
                missing.
        """
        if job.format == "onnx":
            return self.onnx(job.precision)
        if job.format in ENGINE_FORMATS:
            return self._engine(job)
        if job.precision != "fp32":
            raise Skipped(
                "other precisions are made from the ONNX graph; TorchScript, a legacy format, is exported in fp32"
            )
        return self._torchscript()

    def cases(self) -> Iterator[Case]:
        """What to compare on."""
        sizes = self.wrapper.sizes
        if self.wrapper.role == "backbone":
            return embedder_cases(sizes["size"], sizes["channels"])
        return reranker_cases(sizes["strips"], sizes["dims"])

    @functools.cached_property
    def eager(self) -> Run:
        """The network in PyTorch, as a function of arrays."""
        from gaitsdk_export.eager import eager_network

        return eager_network(self.wrapper)

    def onnx(self, precision: str, *, engine: bool = False) -> Made:
        """The ONNX graph in a precision, made and compared once; a failure is remembered, too.

        Args:
            engine: as TensorRT takes it, which in INT8 is another graph.
        """
        key = f"{precision}-engine" if engine and precision == "int8" else precision
        if key not in self._graphs:
            try:
                self._graphs[key] = self._make_graph(precision, engine)
            except MissingDependencyError:
                raise
            except ExportError as error:
                self._graphs[key] = error
        made = self._graphs[key]
        if isinstance(made, ExportError):
            raise made
        return made

    def _make_graph(self, precision: str, engine: bool) -> Made:
        if precision == "fp32":
            return self._fp32()
        return self._int8(engine) if precision == "int8" else self._half(precision)

    @property
    def _metadata(self) -> dict[str, str]:
        return {"fingerprint": self.bundle.fingerprint}

    def _file(self, kind: str) -> Path:
        return self.folder / f"{self.network}{ARTEFACT_SUFFIX[kind]}"

    def _fp32(self) -> Made:
        from gaitsdk_export.to_onnx import onnx_network, to_onnx

        path = self._file("onnx")
        cases = self.cases() if self.options.verify else None
        report = to_onnx(self.wrapper, path, cases=cases, metadata=self._metadata)
        return Made(path, report, onnx_network(path), {}, None if report else "not compared, as asked for")

    def _torchscript(self) -> Made:
        from gaitsdk_export.to_torchscript import to_torchscript, torchscript_network

        path = self._file("torchscript")
        cases = self.cases() if self.options.verify else None
        report = to_torchscript(self.wrapper, path, cases=cases, metadata=self._metadata)
        return Made(path, report, torchscript_network(path), {}, None if report else "not compared, as asked for")

    def _half(self, precision: str) -> Made:
        import onnx

        from gaitsdk_export.half import to_half
        from gaitsdk_export.to_onnx import onnx_network

        exact = onnx.load(str(self.onnx("fp32").path))
        path = self._file(f"onnx-{precision}")
        onnx.save(to_half(exact, precision), str(path))
        if precision == "fp16":
            run, arithmetic = onnx_network(path), "ONNX Runtime on the CPU; adds up in float32"
        else:  # ONNX Runtime has no bfloat16 kernels on a CPU
            run = onnx_network(to_half(exact, precision, emulate=True).SerializeToString())
            arithmetic = "ONNX Runtime on the CPU, emulated: every value rounded to bfloat16, sums in float32"
        return self._compared(precision, path, run, {"arithmetic": arithmetic}, emulated=precision == "bf16")

    def _int8(self, engine: bool) -> Made:
        import onnx

        from gaitsdk_export.quantised import to_int8
        from gaitsdk_export.to_onnx import onnx_network

        if self.network != "backbone":
            raise Skipped(
                "INT8 is for the backbone: a re-ranker is little work, and its order hangs on small differences"
            )
        walks, tree = self.options.walks, self.options.calibration
        path = self._file("onnx-int8").with_stem(f"{self.network}.int8{'-engine' if engine else ''}")
        onnx.save(to_int8(onnx.load(str(self.onnx("fp32").path)), walks, engine=engine), str(path))
        notes = {"calibration": {"walks": len(walks), "from": "synthetic walkers" if tree is None else str(tree)}}
        return self._compared("int8", path, onnx_network(path), notes)

    def _compared(self, precision: str, path: Path, run: Run, notes: dict[str, Any], emulated: bool = False) -> Made:
        """A graph that was made of the exact one, judged."""
        from gaitsdk_export.to_onnx import assert_dynamic

        assert_dynamic(self.wrapper, path)
        report = None
        if self.options.verify:
            report = parity.check(self.eager, run, self.cases(), parity.TOLERANCES[precision])
            report.raise_for_verdict(str(path.name))
        return Made(path, report, run, notes, None if report else "not compared, as asked for", emulated)

    def _engine(self, job: Job) -> Made:
        from gaitsdk_export.to_tensorrt import build_engine, engine_shapes, find_target

        options = self.options
        try:
            trt = import_tensorrt(job.format)
            target = find_target(job.format, trt, job.precision, options.capabilities, options.workspace_mib)
        except (MissingDependencyError, RuntimeUnavailableError) as error:
            raise Skipped(str(error)) from error
        graph = self.onnx(job.precision, engine=True).path.read_bytes()
        profiles = options.sizes.profiles(self.wrapper, self.bundle.manifest.k)
        key = target.key(graph, job.precision, profiles)
        engine, built = options.cache.get_or_build(
            key,
            lambda: build_engine(
                target,
                graph,
                engine_shapes(self.wrapper, profiles),
                timing_cache=options.cache.timing_path(key),
                progress=lambda line: options.progress(f"  {job.format}: {line}"),
            ),
            lambda line: options.progress(f"  {job.format}: {line}"),
        )
        path = self._file(job.kind)
        path.write_bytes(engine)
        left_out = [each for each in options.capabilities if each not in target.capabilities]
        notes: dict[str, Any] = {
            "engine": key.to_dict(),
            "max_batch_size": options.sizes.batch.most,
            "from_cache": not built,
        }
        if job.format == "tensorrt-rtx":
            notes["engine"]["left_out"] = left_out
        return self._judged(job, Made(path, None, None, notes), target, engine, left_out)

    def _judged(self, job: Job, made: Made, target: Target, engine: bytes, left_out: list[int]) -> Made:
        """The engine compared with the eager network, where a GPU that it was built for is here."""
        without = "".join(f"; SM{each} left out, which TensorRT for RTX builds in fp16 only" for each in left_out)
        run = self._engine_network(target, engine)
        if run is None:
            listed = ", ".join(f"SM{each}" for each in target.capabilities)
            reason = f"built for {listed}, and not run: no such GPU here{without}"
            return Made(made.path, None, None, made.notes, reason)
        if not self.options.verify:
            return Made(made.path, None, run, made.notes, f"not compared, as asked for{without}")
        report = parity.check(self.eager, run, self._engine_cases(), parity.ENGINE_TOLERANCES[job.precision])
        report.raise_for_verdict(made.path.name)
        return Made(made.path, report, run, made.notes, without.removeprefix("; ") or None)

    def _engine_network(self, target: Target, engine: bytes) -> Run | None:
        import torch

        if not torch.cuda.is_available():
            return None
        major, minor = torch.cuda.get_device_capability(0)
        if 10 * major + minor not in target.capabilities:
            return None
        profiles = self.options.sizes.profiles(self.wrapper, self.bundle.manifest.k)
        limits = [Limits.from_record(each.to_dict()) for each in profiles]
        cyclic = self.bundle.manifest.length_handling == "cyclic"
        return EngineNetwork(target.trt, torch, engine, limits, "cuda:0", cyclic, where=f"{self.network} engine")

    def _engine_cases(self) -> Iterator[Case]:
        """Within the sizes that the engine was built for, its largest batch included."""
        sizes, batch = self.wrapper.sizes, self.options.sizes.batch
        batches = sorted({each for each in (*BATCHES, batch.most) if batch.least <= each <= batch.most})
        if self.wrapper.role == "backbone":
            frames = self.options.sizes.frames[0]
            lengths = sorted({frames.least, frames.best, frames.most})
            return embedder_cases(sizes["size"], sizes["channels"], batches, lengths)
        return reranker_cases(sizes["strips"], sizes["dims"], batches)
