"""The eager network as the reference, and a quick proof that a compiled one takes other sizes than the traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaitsdk.errors import ExportError
from gaitsdk_export.parity import Network
from gaitsdk_export.wrappers import ExportWrapper


def eager_network(wrapper: ExportWrapper) -> Network:
    """The wrapper as a function of arrays."""

    def run(*arrays: Any) -> list[Any]:
        with torch.inference_mode():
            outputs = wrapper(*(torch.from_numpy(np.ascontiguousarray(each)) for each in arrays))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run


def assert_runs_stretched(wrapper: ExportWrapper, network: Network, target: Path, hint: str = "") -> None:
    """Runs the compiled network with every free axis one longer than in the example that it was traced with.

    Declared axes prove little: a reshape by a traced number declares a free axis and fails, or answers with another
    shape, at any other size.

    Raises:
        ExportError: it does not run, or its outputs have other shapes than the eager network's.
    """
    stretched = []
    for name, tensor in zip(wrapper.input_names, wrapper.example(), strict=True):
        array = tensor.numpy()
        for axis in wrapper.dynamic_axes[name]:
            array = np.concatenate([array, array.take([0], axis=axis)], axis=axis)
        stretched.append(array)
    try:
        found = [each.shape for each in network(*stretched)]
        got = f"shapes {found}"
    # Each runtime has its own exceptions, ONNX Runtime's without a public base class.
    except Exception as error:  # noqa: BLE001
        found, got = [], str(error).strip().splitlines()[-1]
    expected = _expected_shapes(wrapper, stretched)
    if found != expected:
        raise ExportError(
            "an axis that must be free is fixed in the graph",
            where=str(target),
            got=f"{got} ({hint})" if hint else got,
            expected=f"shapes {expected} for inputs of {[each.shape for each in stretched]}",
            fix="a Python number taken from a tensor's shape fixes it: compute with tensors, reshape with -1",
        )


def _expected_shapes(wrapper: ExportWrapper, inputs: list[Any]) -> list[tuple[int, ...]]:
    """The contract's output shapes, with the free axes as long as in `inputs`."""
    lengths = {
        symbol: array.shape[axis]
        for name, array in zip(wrapper.input_names, inputs, strict=True)
        for axis, symbol in wrapper.dynamic_axes[name].items()
    }
    return [
        tuple(lengths[size] if isinstance(size, str) else size for size in wrapper.output_shapes[name])
        for name in wrapper.output_names
    ]
