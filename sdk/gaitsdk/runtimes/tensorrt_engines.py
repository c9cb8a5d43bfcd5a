"""Executes a TensorRT engine on a GPU; torch holds the memory and the streams.

An engine takes sizes in the ranges that it was built for. Calls are padded to a few sizes (batches to powers of two,
frames too where repeating them changes nothing), and each of these has an execution context with fixed buffers and a
CUDA graph of its own: a graph is only good for the state of the context that it was captured from. All contexts of a
lane share one piece of activation memory: a lane does one call at a time.
"""

from __future__ import annotations

import json
import logging
import queue
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import BundleError, InputError, RuntimeUnavailableError

logger = logging.getLogger(__name__)

#: Calls that an engine serves at once, and sizes for which each of them keeps buffers and a graph.
LANES, GRAPHS_PER_LANE = 2, 8
#: Sequences of models for which repetition of frames changes nothing are padded to multiples of this.
FRAME_STEP = 8


@dataclass(frozen=True)
class Limits:
    """One optimisation profile: (least, most) of each free axis by its name, and which axes of which input they are."""

    ranges: Mapping[str, tuple[int, int]]

    @classmethod
    def from_record(cls, record: Mapping[str, Sequence[int]]) -> Limits:
        """From {"batch": [least, best, most], ...}."""
        return cls({symbol: (int(each[0]), int(each[-1])) for symbol, each in record.items()})

    def bucket(self, sizes: Mapping[str, int], cyclic: bool) -> dict[str, int] | None:
        """The sizes to pad a call to, or None where this profile cannot take it.

        Batches become powers of two, and frames of cyclic models multiples of FRAME_STEP, within the range. Lists of
        candidates, and frames that may not be repeated, stay as they are.
        """
        found = {}
        for symbol, size in sizes.items():
            least, most = self.ranges[symbol]
            rounded = size
            if symbol == "batch":
                rounded = max(least, min(1 << (size - 1).bit_length(), most))
            elif symbol == "frames" and cyclic:
                rounded = max(least, min(-(-size // FRAME_STEP) * FRAME_STEP, most))
            if not least <= rounded <= most or rounded < size:
                return None
            found[symbol] = rounded
        return found


#: The free axes of each network's inputs, in the order of its inputs (as in gaitsdk_export.wrappers).
AXES: Mapping[int, tuple[Mapping[int, str], ...]] = {
    1: ({0: "batch", 1: "frames"},),
    2: ({0: "batch"}, {0: "batch", 1: "candidates"}),
}


class EngineNetwork:
    """A deserialised engine as a function of arrays.

    Args:
        trt, torch: the modules.
        content: the serialised engine.
        profiles: of the engine, in its order.
        device: "cuda:N".
        cyclic: repeating frames changes nothing, so that sequences may be padded.
        where: for messages.

    Raises:
        BundleError: TensorRT refuses the engine.
    """

    def __init__(
        self, trt: Any, torch: Any, content: bytes, profiles: Sequence[Limits], device: str, cyclic: bool, where: str
    ) -> None:
        self._profiles, self._cyclic, self._where = profiles, cyclic, where
        log = trt.Logger(trt.Logger.ERROR)
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(log)
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise BundleError("TensorRT refuses the engine", where=where, fix="build it again: gaitsdk export")
            self._lanes: queue.LifoQueue[_Lane] = queue.LifoQueue()
            for _ in range(LANES):
                self._lanes.put(_Lane(trt, torch, engine, device))

    def __call__(self, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """Outputs in the engine's order.

        Raises:
            InputError: sizes outside every profile.
            RuntimeUnavailableError: the GPU could not execute it.
        """
        axes = AXES[len(arrays)]
        most = max(each.ranges["batch"][1] for each in self._profiles)
        parts = []
        for start in range(0, len(arrays[0]), most):
            parts.append(self._run([each[start : start + most] for each in arrays], axes))
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _run(self, arrays: list[NDArray[Any]], axes: tuple[Mapping[int, str], ...]) -> list[NDArray[Any]]:
        pairs = list(zip(arrays, axes, strict=True))
        sizes = {name: array.shape[axis] for array, named in pairs for axis, name in named.items()}
        profile, bucket = self._bucket(sizes)
        padded = [repeat(array, {axis: bucket[name] for axis, name in named.items()}) for array, named in pairs]
        lane = self._lanes.get()
        try:
            outputs = lane.run(profile, padded)
        finally:
            self._lanes.put(lane)
        return [each[: sizes["batch"]] for each in outputs]

    def _bucket(self, sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
        for number, profile in enumerate(self._profiles):
            bucket = profile.bucket(sizes, self._cyclic)
            if bucket is not None:
                return number, bucket
        raise InputError(
            "the engine was not built for these sizes",
            where=self._where,
            got=", ".join(f"{name} {size}" for name, size in sizes.items()),
            expected="; or ".join(
                ", ".join(f"{name} {least} to {most}" for name, (least, most) in each.ranges.items())
                for each in self._profiles
            ),
            fix="gaitsdk export with wider --frames or --candidates, cut the sequence, or runtime='onnx'",
        )


def repeat(array: NDArray[Any], sizes: Mapping[int, int]) -> NDArray[Any]:
    """Lengthens axes to given sizes by repeating from the start; gives the array itself where nothing is to do."""
    for axis, size in sizes.items():
        if array.shape[axis] != size:
            array = array.take(np.arange(size) % array.shape[axis], axis=axis)
    return array


class _Lane:
    """A stream, activation memory, and for each size in use a context with buffers and a CUDA graph."""

    def __init__(self, trt: Any, torch: Any, engine: Any, device: str) -> None:
        self.trt, self.torch, self.engine, self.device = trt, torch, engine, device
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [each for each in names if engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT]
        self.outputs = [each for each in names if each not in self.inputs]
        self.stream = torch.cuda.Stream(device)
        # torch's blocks are aligned to 512 bytes; TensorRT wants 256.
        self.memory = torch.empty(max(1, int(engine.device_memory_size_v2)), dtype=torch.uint8, device=device)
        self.bound: OrderedDict[str, _Bound] = OrderedDict()

    def run(self, profile: int, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        key = json.dumps([profile, [each.shape for each in arrays]])
        torch = self.torch
        try:
            with torch.inference_mode(), torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                bound = self.bound.pop(key, None) or _Bound(self, profile, arrays)
                self.bound[key] = bound  # the last one is the one used last
                if len(self.bound) > GRAPHS_PER_LANE:
                    self.bound.popitem(last=False)
                found = bound(arrays)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            raise RuntimeUnavailableError(
                "TensorRT could not execute the network",
                where=f"runtime 'tensorrt' on {self.device}",
                got=f"{str(error).strip()[:400]}, inputs {[list(each.shape) for each in arrays]}",
                fix="if memory ran out, send fewer or shorter sequences; else try runtime='torch'",
            ) from error
        return found


class _Bound:
    """One size: its context, its buffers on the GPU and, where the engine allows it, its CUDA graph."""

    def __init__(self, lane: _Lane, profile: int, arrays: Sequence[NDArray[Any]]) -> None:
        torch, trt = lane.torch, lane.trt
        self.lane, self.graph = lane, None
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.context = lane.engine.create_execution_context(strategy)
        if self.context is None:
            raise RuntimeError("TensorRT gave no execution context")
        self.context.set_device_memory(lane.memory.data_ptr(), lane.memory.numel())
        self._require(self.context.set_optimization_profile_async(profile, lane.stream.cuda_stream), "profile")
        self.given = {}
        for name, array in zip(lane.inputs, arrays, strict=True):
            self._require(self.context.set_input_shape(name, tuple(array.shape)), f"shape of {name}")
            self.given[name] = torch.from_numpy(np.ascontiguousarray(array)).to(lane.device)
        self.found = {
            name: torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=self._dtype(name), device=lane.device)
            for name in lane.outputs
        }
        for name, tensor in (*self.given.items(), *self.found.items()):
            self._require(self.context.set_tensor_address(name, tensor.data_ptr()), f"address of {name}")
        # Once outside of a graph: after a change of shape the first call may allocate and, with RTX, compile.
        self._execute()
        lane.stream.synchronize()
        self._capture()

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        torch = self.lane.torch
        for tensor, array in zip(self.given.values(), arrays, strict=True):
            whole = np.ascontiguousarray(array)
            tensor.copy_(torch.from_numpy(whole if whole.flags.writeable else whole.copy()))
        if self.graph is None:
            self._execute()
        else:
            self.graph.replay()
        found = [each.to("cpu") for each in self.found.values()]  # waits for the stream
        return [each.numpy() for each in found]

    def _execute(self) -> None:
        stream = self.lane.torch.cuda.current_stream(self.lane.device).cuda_stream
        self._require(self.context.execute_async_v3(stream), "execution")

    def _capture(self) -> None:
        torch = self.lane.torch
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.lane.stream):
                self._execute()
        except RuntimeError as error:
            # Slower, never wrong: some networks synchronise inside, and cannot be captured.
            logger.warning("no CUDA graph for the engine: %s", str(error).splitlines()[0])
            return
        self.graph = graph

    def _dtype(self, name: str) -> Any:
        numpy_type = np.dtype(self.lane.trt.nptype(self.lane.engine.get_tensor_dtype(name)))
        return self.lane.torch.from_numpy(np.empty(0, numpy_type)).dtype

    def _require(self, done: Any, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT refuses the {what}")
