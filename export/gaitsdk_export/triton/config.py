"""A Triton model's configuration as typed objects, to and from `config.pbtxt`.

The text is always written and read by protobuf itself, through `tritonclient`'s description of Triton's own message.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gaitsdk.errors import ExportError, MissingDependencyError

#: NumPy-like names of data types -> Triton's.
DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bytes": "TYPE_STRING",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output. `dims` are without the batch dimension where the model batches; -1 is free."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Batching:
    """Dynamic batching: how long a request may wait for company, and how many may wait at all."""

    max_delay_us: int
    max_queue_size: int
    preferred: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of an ensemble; both maps go from the model's tensor name to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """One model. It has either a `backend` or, as an ensemble, `steps`.

    Attributes:
        max_batch_size: 0 = the model does not batch, and its dims are complete.
        batching: dynamic batching, or None.
        instances: copies of the model on the CPU (a Python model chooses its device itself); not for an ensemble.
        parameters: handed to the model as strings.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    batching: Batching | None = None
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    def to_text(self) -> str:
        """The content of `config.pbtxt`."""
        text_format = importlib.import_module("google.protobuf.text_format")
        return str(text_format.MessageToString(_to_message(self)))


def parse(text: str, where: str = "config.pbtxt") -> ModelConfig:
    """Reads what `ModelConfig.to_text` wrote.

    Raises:
        ExportError: not a model configuration, or it has an unknown field (with the line).
    """
    text_format = importlib.import_module("google.protobuf.text_format")
    message = _messages().ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ExportError("not a valid Triton configuration", where=where, got=str(error)) from error
    return _from_message(message)


def _messages() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependencyError(
            "writing Triton configurations needs tritonclient", fix="pip install 'gaitsdk[client]'"
        ) from error
    return model_config_pb2


def _to_message(config: ModelConfig) -> Any:
    pb = _messages()
    message = pb.ModelConfig(name=config.name, max_batch_size=config.max_batch_size)
    for tensor in config.inputs:
        message.input.add(
            name=tensor.name, data_type=DATA_TYPES[tensor.data_type], dims=tensor.dims, optional=tensor.optional
        )
    for tensor in config.outputs:
        message.output.add(name=tensor.name, data_type=DATA_TYPES[tensor.data_type], dims=tensor.dims)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    if config.steps:
        message.platform = "ensemble"
        for step in config.steps:
            added = message.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
            added.input_map.update(step.inputs)
            added.output_map.update(step.outputs)
        return message
    message.backend = config.backend
    message.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=config.instances)
    if config.batching:
        batching = message.dynamic_batching
        batching.max_queue_delay_microseconds = config.batching.max_delay_us
        batching.preferred_batch_size.extend(config.batching.preferred)
        batching.default_queue_policy.max_queue_size = config.batching.max_queue_size
    return message


def _from_message(message: Any) -> ModelConfig:
    batching = None
    if message.WhichOneof("scheduling_choice") == "dynamic_batching":
        found = message.dynamic_batching
        batching = Batching(
            max_delay_us=found.max_queue_delay_microseconds,
            max_queue_size=found.default_queue_policy.max_queue_size,
            preferred=tuple(found.preferred_batch_size),
        )
    return ModelConfig(
        name=message.name,
        backend=message.backend or message.platform,
        inputs=tuple(_tensor(each) for each in message.input),
        outputs=tuple(_tensor(each) for each in message.output),
        max_batch_size=message.max_batch_size,
        batching=batching,
        instances=sum(group.count for group in message.instance_group) or 1,
        parameters={key: value.string_value for key, value in message.parameters.items()},
        steps=tuple(
            Step(each.model_name, dict(each.input_map), dict(each.output_map))
            for each in message.ensemble_scheduling.step
        ),
    )


def _tensor(message: Any) -> Tensor:
    names = {_messages().DataType.Value(value): key for key, value in DATA_TYPES.items()}
    if message.data_type not in names:
        raise ExportError("a data type that gaitsdk does not use", where=message.name, got=message.data_type)
    return Tensor(message.name, names[message.data_type], tuple(message.dims), getattr(message, "optional", False))
