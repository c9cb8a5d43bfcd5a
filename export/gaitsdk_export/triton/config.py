"""A Triton model's configuration as typed objects; `gaitsdk_export.triton.pbtxt` turns them into text and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tensor:
    """An input or output. `dims` are without the batch dimension where the model batches; -1 is free. Requests that
    differ in a `ragged` input's free sizes share a batch; the model gets them as they are."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False


@dataclass(frozen=True)
class Batching:
    """Dynamic batching: how long a request may wait for company, and how many may wait, and how long, at all.

    Attributes:
        max_delay_us: that a request waits for others while the model is free.
        max_queue_size: requests that may wait; one more is refused. 0 = any number.
        preferred: batch sizes that are sent at once, where they are complete.
        timeout_us: a request that has waited so long is refused instead of answered. 0 = never.
        allow_shorter: a request may bring a shorter timeout of its own.
    """

    max_delay_us: int
    max_queue_size: int
    preferred: tuple[int, ...] = ()
    timeout_us: int = 0
    allow_shorter: bool = False


@dataclass(frozen=True)
class Resource:
    """What one execution of a model takes from the server's rate limiter while it runs, if that is switched on."""

    name: str
    count: int = 1
    every_device: bool = False


@dataclass(frozen=True)
class Instances:
    """A group of copies of a model.

    Attributes:
        count: copies, on each GPU where `kind` is "gpu".
        kind: "cpu", "gpu", "auto" or "model" (which chooses itself).
        gpus: their numbers; none = all that there are.
        profiles: of a TensorRT engine that has several: those to use; none = the first.
        resources: for the rate limiter.
    """

    count: int = 1
    kind: str = "cpu"
    gpus: tuple[int, ...] = ()
    profiles: tuple[int, ...] = ()
    resources: tuple[Resource, ...] = ()


@dataclass(frozen=True)
class Versions:
    """Which version folders are served: the `latest` n with the highest numbers, `specific` ones, or (neither) all."""

    latest: int = 0
    specific: tuple[int, ...] = ()

    def served(self, there: list[int]) -> list[int]:
        """Of the version folders that are there, those that are served, ascending."""
        if self.specific:
            return sorted(set(self.specific) & set(there))
        return sorted(there)[-self.latest :]


#: What Triton does where a configuration says nothing.
LATEST = Versions(latest=1)


@dataclass(frozen=True)
class Sample:
    """One input of a warm-up request. `data` is "zero", "random" or the name of a file in the model's folder `warmup`
    with the raw bytes of one item."""

    data_type: str
    dims: tuple[int, ...]
    data: str = "zero"


@dataclass(frozen=True)
class Warmup:
    """A request that the server makes before the model counts as ready; `batch_size` copies of the same item."""

    name: str
    inputs: Mapping[str, Sample]
    batch_size: int = 1


@dataclass(frozen=True)
class CudaGraph:
    """A size for which TensorRT's launches are recorded once and replayed; `shapes` are without the batch."""

    batch_size: int
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Step:
    """One step of an ensemble; both maps go from the model's tensor name to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
        backend: "python", or a platform: "tensorrt_plan", "ensemble" (then there are `steps`).
        max_batch_size: 0 = the model does not batch, and its dims are complete.
        batching: dynamic batching, or None.
        instances: groups of copies; none = Triton's choice (an ensemble has none).
        parameters: handed to the model as strings.
        versions: which version folders are served.
        warmup: requests before the model counts as ready.
        cuda_graphs: of a TensorRT engine.
        response_cache: answer equal requests from memory. Written in any case: whoever reads the file sees it is off.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int = 0
    batching: Batching | None = None
    instances: tuple[Instances, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    versions: Versions = LATEST
    warmup: tuple[Warmup, ...] = ()
    cuda_graphs: tuple[CudaGraph, ...] = ()
    response_cache: bool = False
