"""`ModelConfig` to and from `config.pbtxt`.

The text is always written and read by protobuf itself, through `tritonclient`'s description of Triton's own message.
"""

from __future__ import annotations

import importlib
from typing import Any

from gaitsdk.errors import ExportError, MissingDependencyError
from gaitsdk_export.triton.config import (
    LATEST,
    Batching,
    CudaGraph,
    Instances,
    ModelConfig,
    Resource,
    Sample,
    Step,
    Tensor,
    Versions,
    Warmup,
)

#: NumPy-like names of data types -> Triton's.
DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bytes": "TYPE_STRING",
}
#: What Triton calls a platform; all others are backends.
PLATFORMS = ("ensemble", "tensorrt_plan", "onnxruntime_onnx", "pytorch_libtorch")
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU", "model": "KIND_MODEL"}


def to_text(config: ModelConfig) -> str:
    """The content of `config.pbtxt`; the same for equal configurations."""
    text = str(importlib.import_module("google.protobuf.text_format").MessageToString(_to_message(config)))
    # proto3 leaves zeros out, and a model without this line is one whose batch size the server may choose.
    return text if config.max_batch_size else f"max_batch_size: 0\n{text}"


def parse(text: str, where: str = "config.pbtxt") -> ModelConfig:
    """Reads a configuration: all of one that `to_text` wrote, of others what `ModelConfig` has a word for.

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
    message = _messages().ModelConfig(name=config.name, max_batch_size=config.max_batch_size)
    setattr(message, "platform" if config.backend in PLATFORMS else "backend", config.backend)
    for tensor in config.inputs:
        added = message.input.add(name=tensor.name, data_type=DATA_TYPES[tensor.data_type], dims=tensor.dims)
        added.optional, added.allow_ragged_batch = tensor.optional, tensor.ragged
    for tensor in config.outputs:
        message.output.add(name=tensor.name, data_type=DATA_TYPES[tensor.data_type], dims=tensor.dims)
    for key, value in config.parameters.items():
        message.parameters[key].string_value = value
    for step in config.steps:
        added = message.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        added.input_map.update(step.inputs)
        added.output_map.update(step.outputs)
    if config.batching:
        _write_batching(message.dynamic_batching, config.batching)
    for group in config.instances:
        _write_instances(message.instance_group.add(), group)
    _write_versions(message.version_policy, config.versions)
    for request in config.warmup:
        _write_warmup(message.model_warmup.add(), request)
    if config.cuda_graphs:
        message.optimization.cuda.graphs = True
        for graph in config.cuda_graphs:
            spec = message.optimization.cuda.graph_spec.add(batch_size=graph.batch_size)
            for name, dims in graph.shapes.items():
                spec.input[name].dim.extend(dims)
    message.response_cache.SetInParent()
    message.response_cache.enable = config.response_cache
    return message


def _write_batching(message: Any, batching: Batching) -> None:
    message.max_queue_delay_microseconds = batching.max_delay_us
    message.preferred_batch_size.extend(batching.preferred)
    policy = message.default_queue_policy  # its timeout_action is REJECT, the other being to answer late
    policy.max_queue_size = batching.max_queue_size
    policy.default_timeout_microseconds = batching.timeout_us
    policy.allow_timeout_override = batching.allow_shorter


def _write_instances(message: Any, group: Instances) -> None:
    message.kind = _messages().ModelInstanceGroup.Kind.Value(_KINDS[group.kind])
    message.count = group.count
    message.gpus.extend(group.gpus)
    message.profile.extend(map(str, group.profiles))
    for each in group.resources:
        resource = message.rate_limiter.resources.add(name=each.name, count=each.count)
        setattr(resource, "global", each.every_device)  # a Python keyword


def _write_versions(message: Any, versions: Versions) -> None:
    if versions.specific:
        message.specific.versions.extend(versions.specific)
    elif versions.latest:
        message.latest.num_versions = versions.latest
    else:
        message.all.SetInParent()


def _write_warmup(message: Any, request: Warmup) -> None:
    message.name, message.batch_size = request.name, request.batch_size
    for name, sample in request.inputs.items():
        given = message.inputs[name]
        given.data_type = _messages().DataType.Value(DATA_TYPES[sample.data_type])
        given.dims.extend(sample.dims)
        if sample.data in ("zero", "random"):
            setattr(given, f"{sample.data}_data", True)
        else:
            given.input_data_file = sample.data


def _from_message(message: Any) -> ModelConfig:
    batching = None
    if message.WhichOneof("scheduling_choice") == "dynamic_batching":
        found, policy = message.dynamic_batching, message.dynamic_batching.default_queue_policy
        batching = Batching(
            max_delay_us=found.max_queue_delay_microseconds,
            max_queue_size=policy.max_queue_size,
            preferred=tuple(found.preferred_batch_size),
            timeout_us=policy.default_timeout_microseconds,
            allow_shorter=policy.allow_timeout_override,
        )
    return ModelConfig(
        name=message.name,
        backend=message.backend or message.platform,
        inputs=tuple(_tensor(each) for each in message.input),
        outputs=tuple(_tensor(each) for each in message.output),
        max_batch_size=message.max_batch_size,
        batching=batching,
        instances=tuple(_instances(each) for each in message.instance_group),
        parameters={key: value.string_value for key, value in message.parameters.items()},
        steps=tuple(
            Step(each.model_name, dict(each.input_map), dict(each.output_map))
            for each in message.ensemble_scheduling.step
        ),
        versions=_versions(message.version_policy),
        warmup=tuple(_warmup(each) for each in message.model_warmup),
        cuda_graphs=tuple(
            CudaGraph(each.batch_size, {name: tuple(shape.dim) for name, shape in each.input.items()})
            for each in message.optimization.cuda.graph_spec
        ),
        response_cache=message.response_cache.enable,
    )


def _instances(message: Any) -> Instances:
    names = {_messages().ModelInstanceGroup.Kind.Value(value): key for key, value in _KINDS.items()}
    return Instances(
        count=message.count,
        kind=names[message.kind],
        gpus=tuple(message.gpus),
        profiles=tuple(int(each) for each in message.profile),
        resources=tuple(
            Resource(each.name, each.count, getattr(each, "global")) for each in message.rate_limiter.resources
        ),
    )


def _versions(message: Any) -> Versions:
    chosen = message.WhichOneof("policy_choice")
    if chosen == "specific":
        return Versions(specific=tuple(message.specific.versions))
    if chosen == "all":
        return Versions()
    return Versions(latest=message.latest.num_versions) if chosen == "latest" else LATEST


def _warmup(message: Any) -> Warmup:
    inputs = {}
    for name, given in message.inputs.items():
        data = given.input_data_file or ("random" if given.random_data else "zero")
        inputs[name] = Sample(_data_type(given.data_type, name), tuple(given.dims), data)
    return Warmup(message.name, inputs, message.batch_size)


def _tensor(message: Any) -> Tensor:
    return Tensor(
        message.name,
        _data_type(message.data_type, message.name),
        tuple(message.dims),
        getattr(message, "optional", False),  # an output has neither field
        getattr(message, "allow_ragged_batch", False),
    )


def _data_type(number: int, where: str) -> str:
    names = {_messages().DataType.Value(value): key for key, value in DATA_TYPES.items()}
    if number not in names:
        raise ExportError("a tensor without data type", where=where, expected=", ".join(DATA_TYPES.values()))
    return names[number]
