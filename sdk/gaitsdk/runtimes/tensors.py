"""A request's arrays as Triton's tensors, and an answer's tensors as arrays; `tritonclient` knows the formats."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import AnswerError, MissingDependencyError

Arrays = Mapping[str, NDArray[Any]]
Reply = dict[str, NDArray[Any]]

#: Triton's names of the element types.
TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32", "float64": "FP64", "object": "BYTES"}


@dataclass(frozen=True)
class Request:
    """One inference.

    Attributes:
        model: its name in the repository.
        inputs: arrays by name.
        outputs: names of the tensors wanted.
        parameters: of the request.
        repeatable: whether carrying it out twice does no harm.
        id: by which the server's log and audit name it, in every attempt.
    """

    model: str
    inputs: Arrays
    outputs: Sequence[str]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = True
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs."""
        return sum(int(array.nbytes) for array in self.inputs.values())


def import_client(name: str) -> Any:
    """A module that comes with tritonclient; MissingDependencyError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "talking to a Triton server needs tritonclient", got=str(error), fix="pip install 'gaitsdk[client]'"
        ) from error


def call_arguments(client: Any, request: Request, timeout: float) -> dict[str, Any]:
    """What gRPC's and HTTP's `infer` take alike. The time-out in it is for the server's queues."""
    inputs = []
    for name, array in request.inputs.items():
        tensor = client.InferInput(name, list(array.shape), TYPES[array.dtype.name])
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        inputs.append(tensor)
    return {
        "inputs": inputs,
        "outputs": _wanted(client, tuple(request.outputs)),
        "request_id": request.id,
        "timeout": microseconds(timeout),
        "parameters": dict(request.parameters) or None,
    }


def microseconds(seconds: float) -> int:
    """A time-out as Triton takes it: 0 would mean none."""
    return max(1, int(seconds * 1e6))


def raw_bytes(array: NDArray[Any]) -> bytes:
    """The elements of a tensor in Triton's order; each of BYTES (an object array of bytes) after its length."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(each).to_bytes(4, "little") + each for each in array.ravel().tolist())


@lru_cache(maxsize=64)
def _wanted(client: Any, names: tuple[str, ...]) -> list[Any]:
    return [client.InferRequestedOutput(name) for name in names]


def reply(answer: Any, names: Sequence[str], url: str) -> Reply:
    """The named outputs; AnswerError where one is missing."""
    arrays = {name: answer.as_numpy(name) for name in names}
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        fix = "update gaitsdk on both sides"
        raise AnswerError("the server's answer lacks outputs", where=url, got=f"no {', '.join(missing)}", fix=fix)
    return arrays
