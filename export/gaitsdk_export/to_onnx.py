"""ONNX export: torch's dynamo exporter, free axes checked by name and by running, answers compared before it counts."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gaitsdk.errors import ExportError, MissingDependencyError
from gaitsdk_export.atomic import appears_whole
from gaitsdk_export.eager import assert_runs_stretched, eager_network
from gaitsdk_export.parity import Case, Network, ParityReport, Tolerance, check
from gaitsdk_export.wrappers import ExportWrapper

logger = logging.getLogger(__name__)

#: Fixed, so that a newer torch does not change what servers must understand. TensorRT 10 reads it.
OPSET = 18


def to_onnx(
    wrapper: ExportWrapper,
    path: str | os.PathLike[str],
    *,
    cases: Iterable[Case] | None,
    metadata: Mapping[str, str] | None = None,
    tolerance: Tolerance | None = None,
) -> ParityReport | None:
    """Exports a network to one `.onnx` file and compares its answers.

    Args:
        wrapper: `EmbedderForExport` or `RerankerForExport`, on the CPU.
        path: the file; appears only after every check has passed.
        cases: what to compare on (`gaitsdk_export.cases`); None skips the comparison.
        metadata: further entries of the file's `metadata_props`, for example the model's fingerprint.
        tolerance: the gates; default the project's.

    Returns:
        The parity report, or None where it was skipped.

    Raises:
        ExportError: torch cannot export the network, or an axis that must be free is fixed in the graph.
        ParityError: the answers differ; `.report` has the figures.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_packages()
    target = Path(path)
    with appears_whole(target) as temporary:
        _export(wrapper, temporary)
        _finish(wrapper, temporary, dict(metadata or {}))
        assert_dynamic(wrapper, temporary)
        network = onnx_network(temporary)
        assert_runs_stretched(wrapper, network, target)
        report = None
        if cases is not None:
            report = check(eager_network(wrapper), network, cases, tolerance)
            report.raise_for_verdict(str(target))
    return report


def require_packages() -> None:
    """Raises MissingDependencyError unless all that an ONNX export needs can be imported."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependencyError(
                f"{package} is not installed", where="ONNX export", fix="pip install onnx onnxscript onnxruntime"
            ) from error


def onnx_network(graph: str | os.PathLike[str] | bytes) -> Network:
    """An `.onnx` file, or its bytes, as a function of arrays, in ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it would print becomes the reason of a FAIL
    try:
        source = graph if isinstance(graph, bytes) else os.fspath(graph)
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # Its exceptions have no public base class but Exception.
    except Exception as error:
        where = None if isinstance(graph, bytes) else str(graph)
        raise ExportError("ONNX Runtime refuses the graph", where=where, got=str(error)) from error
    names = [each.name for each in session.get_inputs()]

    def run(*arrays: Any) -> list[Any]:
        outputs: list[Any] = session.run(None, dict(zip(names, arrays, strict=True)))
        return outputs

    return run


def assert_dynamic(wrapper: ExportWrapper, path: str | os.PathLike[str]) -> None:
    """Raises ExportError unless inputs and outputs have the names, free axes and fixed sizes of the contract."""
    import onnx

    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    found = {value.name: _dimensions(value) for value in (*graph.input, *graph.output)}
    if tuple(value.name for value in graph.input) != wrapper.input_names:
        _refuse(path, "inputs", [value.name for value in graph.input], wrapper.input_names)
    if tuple(value.name for value in graph.output) != wrapper.output_names:
        _refuse(path, "outputs", [value.name for value in graph.output], wrapper.output_names)
    for name, axes in wrapper.dynamic_axes.items():
        for axis, symbol in axes.items():
            if found[name][axis] != symbol:
                _refuse(path, f"{name}, axis {axis}: a free axis was frozen or merged,", found[name][axis], symbol)
    for name, shape in wrapper.output_shapes.items():
        # Inference may call a free output axis anything (for example "2*batch//2"); only fixed sizes must be exact.
        fixed = [found[name][axis] for axis, size in enumerate(shape) if isinstance(size, int)]
        free = [found[name][axis] for axis, size in enumerate(shape) if isinstance(size, str)]
        wrong = fixed != [size for size in shape if isinstance(size, int)] or any(
            isinstance(each, int) for each in free
        )
        if len(found[name]) != len(shape) or wrong:
            _refuse(path, f"{name}: another shape,", found[name], shape)


def _refuse(path: str | os.PathLike[str], what: str, got: object, expected: object) -> None:
    raise ExportError(
        f"{what} in the ONNX graph",
        where=str(path),
        got=str(got),
        expected=str(expected),
        fix="a Python number taken from a tensor's shape in forward() fixes it: compute with tensors, reshape with -1",
    )


def _dimensions(value: Any) -> list[str | int]:
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


def _export(wrapper: ExportWrapper, path: Path) -> None:
    symbols: dict[str, Any] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for name, axes in wrapper.dynamic_axes.items():
        for axis, symbol in axes.items():
            size = symbols.setdefault(symbol, torch.export.Dim(symbol, min=wrapper.least.get(symbol, 1)))
            shapes.setdefault(name, {})[axis] = size
    with _quiet():
        try:
            torch.onnx.export(
                wrapper,
                wrapper.example(),
                os.fspath(path),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,  # one file: a copy without its .data would not load
                input_names=list(wrapper.input_names),
                output_names=list(wrapper.output_names),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except OSError:
            raise  # a full disk, say: nothing is wrong with the network
        # torch raises a dozen unrelated types here, some of them private.
        except Exception as error:
            raise ExportError(
                f"torch cannot export the {wrapper.role} to ONNX with free axes",
                where=type(getattr(wrapper, "model", getattr(wrapper, "reranker", wrapper))).__name__,
                got=_last_cause(error),
                fix="export --to torchscript, or keep runtime='torch' for this model",
            ) from error


def _last_cause(error: BaseException) -> str:
    """The first lines of the exception that started the chain: the outer ones are generic advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])[:400]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns about torchvision, its own internals and its plans: none of it concerns the user."""
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(level)


def _finish(wrapper: ExportWrapper, path: Path, metadata: dict[str, str]) -> None:
    """Writes our metadata, drops stack traces (they hold paths of the exporting machine), and checks the file."""
    import onnx

    import gaitsdk

    model = onnx.load(os.fspath(path))
    for part in (model.graph, *model.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in part.value_info:
            del value.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    entries = {
        "gaitsdk.task": wrapper.task,
        "gaitsdk.role": wrapper.role,
        "gaitsdk.version": gaitsdk.__version__,
        "gaitsdk.torch": torch.__version__,
        "gaitsdk.onnx": onnx.__version__,
        **{f"gaitsdk.{key}": str(value) for key, value in wrapper.sizes.items()},
        **{f"gaitsdk.{key}": value for key, value in metadata.items()},
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, os.fspath(path))
