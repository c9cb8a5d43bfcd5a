"""Engines from ONNX graphs: one way for TensorRT 10 and 11 and for TensorRT for RTX; the module is a parameter.

Networks are strongly typed: precision is what the graph says, no flag changes it. TensorRT needs a GPU to build;
TensorRT for RTX does not, and builds for any list of compute capabilities.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaitsdk.errors import ExportError, OptionError, RuntimeUnavailableError
from gaitsdk_export.engine_cache import EngineKey
from gaitsdk_export.formats import Profile
from gaitsdk_export.wrappers import ExportWrapper

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
#: Compute capabilities for which TensorRT for RTX (1.7) has no matrix products in float32 or bfloat16.
HALF_ONLY = frozenset({75})
#: How TensorRT says, below the level of errors, that the scratch memory of the largest profile is above the limit.
_NEEDED = re.compile(r"Exceeded mem budget of (\d+)\. Need (\d+)")
_AGAIN = "export it again: gaitsdk export --to onnx"


@dataclass(frozen=True)
class Target:
    """What an engine is built with and for.

    Attributes:
        format: "tensorrt" or "tensorrt-rtx".
        trt: the module.
        capabilities: compute capabilities, 89 for 8.9.
        gpu: the GPU that the engine is tuned on; None where it is finished on the GPU that runs it.
        workspace_mib: limit of the scratch memory, which holds the activations of the largest profile; None = the
            builder's own: the GPU's memory, and 64 GiB for TensorRT for RTX.
    """

    format: str
    trt: Any
    capabilities: tuple[int, ...]
    gpu: str | None
    workspace_mib: int | None = None

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def key(self, onnx: bytes, precision: str, profiles: Sequence[Profile]) -> EngineKey:
        """What tells this engine from every other."""
        return EngineKey(
            onnx_sha256=hashlib.sha256(onnx).hexdigest(),
            builder=self.format,
            builder_version=self.version,
            compute_capabilities=self.capabilities,
            gpu=self.gpu,
            precision=precision,
            profiles=tuple(each.to_dict() for each in profiles),
            flags=("strongly_typed", "no_tf32", f"workspace_mib={self.workspace_mib or 'default'}"),
        )


def find_target(
    format: str, trt: Any, precision: str, capabilities: Sequence[int] = (), workspace_mib: int | None = None
) -> Target:
    """The target of this machine.

    Args:
        format: "tensorrt" builds for the GPU it is on; "tensorrt-rtx" for `capabilities`, default all that it knows.
        trt: from `import_tensorrt`.
        precision: of the graph. TensorRT for RTX builds for 7.5 in fp16 only; in others 75 is left out.
        capabilities: ignored by "tensorrt".
        workspace_mib: as in `Target`.

    Raises:
        OptionError: TensorRT for RTX does not know one of the capabilities.
        RuntimeUnavailableError: nothing left to build for; or "tensorrt", and no GPU here.
    """
    if format == "tensorrt-rtx":
        known = known_capabilities(trt)
        unknown = [each for each in capabilities if each not in known]
        if unknown:
            raise OptionError(
                f"TensorRT for RTX {trt.__version__} cannot build for it",
                where="sm",
                got=", ".join(map(str, unknown)),
                expected="of " + ", ".join(map(str, known)),
                fix="--to tensorrt on the GPU itself"
                if any(each in (70, 72, 87, 90, 100, 103) for each in unknown)
                else None,
            )
        able = tuple(each for each in capabilities or known if precision == "fp16" or each not in HALF_ONLY)
        if not able:
            raise RuntimeUnavailableError(
                f"TensorRT for RTX builds for {', '.join(map(str, capabilities))} in fp16 only",
                where=format,
                got=precision,
                fix="--precision fp16",
            )
        return Target(format, trt, able, None, workspace_mib)
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            "TensorRT needs a GPU to build an engine",
            where=format,
            got=f"torch {torch.__version__} finds none",
            fix="run it on the GPU that will serve, or --to tensorrt-rtx, which builds without",
        )
    major, minor = torch.cuda.get_device_capability(0)
    return Target(format, trt, (10 * major + minor,), str(torch.cuda.get_device_name(0)), workspace_mib)


def known_capabilities(trt: Any) -> tuple[int, ...]:
    """The compute capabilities that a TensorRT for RTX builds for, ascending."""
    names = (name for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return tuple(sorted(int(name.removeprefix("SM")) for name in names))


def build_engine(
    target: Target,
    onnx: bytes,
    shapes: Sequence[Shapes],
    *,
    timing_cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> bytes:
    """Builds an engine.

    Args:
        target: with what and for what.
        onnx: a graph in one piece; `require_single_file` says whether it is.
        shapes: one optimisation profile each: least, best and largest shape of every input.
        timing_cache: file that remembers measured kernels; read and replaced, left alone where the builder keeps none.
        progress: called with a line of text as phases of the build begin.

    Returns:
        The serialised engine.

    Raises:
        ExportError: the parser or the builder refuses the graph; the message has what they said.
        KeyboardInterrupt: Ctrl-C; the build was cancelled.
    """
    trt = target.trt
    require_single_file(onnx)
    log = _collecting_logger(trt)
    builder = trt.Builder(log)
    network = _strongly_typed(trt, builder)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx) or parser.num_errors:
        said = [f"{each.node_name()}: {each.desc()}" for each in map(parser.get_error, range(parser.num_errors))]
        raise _refusal(target, "parse", said)
    config = builder.create_builder_config()
    if target.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, target.workspace_mib << 20)
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 would be off by 1e-3
    if target.format == "tensorrt-rtx":
        config.num_compute_capabilities = len(target.capabilities)
        for index, each in enumerate(target.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{each}"), index)
    for wanted in shapes:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in wanted.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise _refusal(target, "take the profile of", log.errors)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    with _timing(target, config, timing_cache):
        engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise _too_large(target, *log.needed) if log.needed else _refusal(target, "build", log.errors)
    return bytes(engine)


def engine_shapes(wrapper: ExportWrapper, profiles: Sequence[Profile]) -> list[Shapes]:
    """The profiles as shapes of the network's inputs."""
    return [each.shapes(wrapper) for each in profiles]


def require_single_file(onnx: bytes) -> None:
    """Raises ExportError where the graph is damaged or keeps weights in other files (wherever those may lie)."""
    from onnx import ModelProto, TensorProto
    from onnx.external_data_helper import uses_external_data

    refused = importlib.import_module("google.protobuf.message").DecodeError  # protobuf comes without types
    try:
        model = ModelProto.FromString(onnx)
    except refused as error:
        raise ExportError(
            "not an ONNX graph", got=str(error), fix="export it again: gaitsdk export --to onnx"
        ) from error
    tensors: list[TensorProto] = list(model.graph.initializer)
    tensors += [each.t for node in model.graph.node for each in node.attribute if each.HasField("t")]
    outside = [each.name for each in tensors if uses_external_data(each)]
    if outside:
        raise ExportError(
            "the ONNX graph keeps weights in other files",
            got=", ".join(outside[:3]),
            expected="one file",
            fix=_AGAIN,
        )


def _strongly_typed(trt: Any, builder: Any) -> Any:
    # TensorRT 11 knows nothing else, and may drop the flag one day.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _refusal(target: Target, what: str, said: Sequence[Any]) -> ExportError:
    got = "; ".join(str(each).strip() for each in said[:3]) or "no reason given"
    fix = "another precision or another version of TensorRT; the ONNX artefact runs everywhere"
    if target.workspace_mib is not None and "workspace" in got:
        fix = f"a larger --workspace than {target.workspace_mib}, or none"
    return ExportError(f"{target.format} {target.version} cannot {what} the graph", got=got, fix=fix)


def _too_large(target: Target, limit: int, needed: int) -> ExportError:
    mib = -(-needed >> 20)
    return ExportError(
        f"{target.format} {target.version} needs more scratch memory for the largest sizes than it may take",
        got=f"{mib} MiB",
        expected=f"at most {limit >> 20} MiB",
        fix=f"smaller largest --batch or --frames, or --workspace {mib} where the GPU has as much to spare",
    )


def _collecting_logger(trt: Any) -> Any:
    """Keeps what the builder calls an error, so that it can stand in the message; nothing is printed."""

    class Collector(trt.ILogger):  # type: ignore[misc]  # the module is a parameter
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            #: Bytes that it may take and bytes that it needs, where it needs more.
            self.needed: tuple[int, int] | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif found := _NEEDED.search(message):
                self.needed = int(found[1]), int(found[2])

    return Collector()


def _monitor(trt: Any, progress: Callable[[str], None] | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is a parameter
        """Reports phases; Ctrl-C cancels the build, because an exception must not pass through the C++ in between."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._held():
                if progress is not None and parent is None:
                    progress(f"{name} ({steps} steps)")

        def step_complete(self, name: str, step: int) -> bool:
            with self._held():
                pass
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            with self._held():
                pass

        @contextlib.contextmanager
        def _held(self) -> Iterator[None]:
            try:
                yield
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


@contextlib.contextmanager
def _timing(target: Target, config: Any, path: Path | None) -> Iterator[None]:
    """Lends the builder the measurements of earlier builds, and keeps those of this one."""
    if path is None or target.format == "tensorrt-rtx":  # it measures nothing while it builds
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    # A cache of another version or GPU is refused, and this build begins with an empty one.
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    yield
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    os.replace(temporary, path)
