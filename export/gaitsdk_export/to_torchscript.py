"""TorchScript export by tracing: legacy (torch announces its end), for those whose servers read it."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaitsdk.errors import ExportError
from gaitsdk_export.atomic import appears_whole
from gaitsdk_export.eager import assert_runs_stretched, eager_network
from gaitsdk_export.parity import Case, Network, ParityReport, Tolerance, check
from gaitsdk_export.wrappers import ExportWrapper

_jit: Any = torch.jit  # torch leaves these functions untyped


def to_torchscript(
    wrapper: ExportWrapper,
    path: str | os.PathLike[str],
    *,
    cases: Iterable[Case] | None,
    metadata: Mapping[str, str] | None = None,
    tolerance: Tolerance | None = None,
) -> ParityReport | None:
    """Traces a network, freezes it, and compares its answers. The arguments, result and errors are those of `to_onnx`.

    A trace does not declare which axes are free; that B, T and K are is proved by running other sizes than the traced
    one (also with `cases=None`). `metadata` is stored in the archive as `extra/gaitsdk.json`.
    """
    target = Path(path)
    with appears_whole(target) as temporary:
        hints = _trace(wrapper, temporary, dict(metadata or {}))
        network = torchscript_network(temporary)
        assert_runs_stretched(wrapper, network, target, f"the tracer said: {hints[0]}" if hints else "")
        report = None
        if cases is not None:
            report = check(eager_network(wrapper), network, cases, tolerance)
            report.raise_for_verdict(str(target))
    return report


def torchscript_network(path: str | os.PathLike[str]) -> Network:
    """A TorchScript file as a function of arrays, on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        module = _jit.load(os.fspath(path), map_location="cpu")

    def run(*arrays: Any) -> list[Any]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in arrays))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


def _trace(wrapper: ExportWrapper, path: Path, metadata: dict[str, str]) -> list[str]:
    """Writes the frozen trace; gives the tracer's hints about values that it took for constants."""
    notes = {"task": wrapper.task, "role": wrapper.role, "torch": torch.__version__, **wrapper.sizes, **metadata}
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", _jit.TracerWarning)
        # Ours to make, and announced to users in the documentation: the warning would only worry them.
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        try:
            # check_trace would only repeat the same input; parity runs many.
            traced = _jit.freeze(_jit.trace(wrapper, wrapper.example(), check_trace=False).eval())
            content = io.BytesIO()  # torch's own writer ends the whole process where the disk is full
            _jit.save(traced, content, _extra_files={"gaitsdk.json": json.dumps(notes, sort_keys=True)})
        except (RuntimeError, TypeError, ValueError) as error:
            raise ExportError(
                f"torch cannot trace the {wrapper.role}",
                where=type(wrapper).__name__,
                got=str(error).strip()[:400],
                fix="keep runtime='torch' for this model",
            ) from error
    path.write_bytes(content.getvalue())
    for each in caught:
        if not issubclass(each.category, _jit.TracerWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return [str(each.message).split(". ")[0] for each in caught if issubclass(each.category, _jit.TracerWarning)]
