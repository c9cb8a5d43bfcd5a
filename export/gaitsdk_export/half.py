"""Half precision in the ONNX graph itself: what TensorRT's strongly typed networks take, and any other runtime too.

Three kinds of operators decide which values are half and which stay float32:

* COMPUTE (convolutions, matrix products) take half and give half: weights and the large maps between them.
* EXACT (softmax, normalisation, means, norms and distances, exponentials) take float32 and give float32.
* All others follow their inputs, and a float32 input wins. So the difference of two feature maps that enter as float32
  stays float32 up to the norm that is taken of it, and a rectifier behind a convolution stays half.

Inputs and outputs of the graph keep their types. Constants take the type of the operator that reads them: a mask of
-1e9 becomes the least number that half precision has, never minus infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gaitsdk.errors import ExportError, OptionError

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
EXACT = frozenset(
    "AveragePool BatchNormalization Cos CumSum Div Erf Exp GlobalAveragePool GroupNormalization InstanceNormalization "
    "LayerNormalization Log LogSoftmax LpNormalization MeanVarianceNormalization Pow RMSNormalization Range Reciprocal "
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Sin Softmax "
    "Softplus Sqrt Sum".split()
)
#: Read a value's shape or change its type: whatever type it has is right.
_INDIFFERENT = frozenset({"Cast", "Shape", "Size"})
#: Of these only the first input carries values; the others are sizes, and float32 always.
_FIRST_INPUT_ONLY = frozenset({"Resize"})
#: The first opset in which every operator of COMPUTE and pooling takes bfloat16.
BF16_OPSET = 22


def to_half(model: Any, precision: str, *, emulate: bool = False) -> Any:
    """A copy of a float32 graph in half precision.

    Args:
        model: `onnx.ModelProto` with float32 inputs or such that are cast to float32; not changed.
        precision: "fp16" or "bf16".
        emulate: keep float32 tensors, but round each value that would be half to what half precision can hold: the
            same arithmetic as of hardware that adds up in float32, for runtimes that have no kernels for the type.

    Returns:
        `onnx.ModelProto`, checked.

    Raises:
        OptionError: another precision. ExportError: a graph with parts that this cannot convert.
    """
    import onnx

    if precision not in ("fp16", "bf16"):
        raise OptionError("no half precision", where="precision", got=repr(precision), expected="fp16 or bf16")
    source = model
    if precision == "bf16" and not emulate:
        source = onnx.version_converter.convert_version(model, BF16_OPSET)
    converted = _Converter(source, precision, emulate).run()
    # The types of values between have changed; inference writes the new ones, and the checker compares them.
    try:
        converted = onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True)
        onnx.checker.check_model(converted, full_check=True)
    # Both have exceptions of their own, with no common base class.
    except Exception as error:
        raise ExportError(f"the graph in {precision} is not valid", got=str(error).strip()[:400]) from error
    onnx.helper.set_model_props(
        converted, {**{each.key: each.value for each in model.metadata_props}, "gaitsdk.precision": precision}
    )
    return converted


class _Converter:
    """Goes through the nodes in their order and hands each its inputs in the type that it wants."""

    def __init__(self, model: Any, precision: str, emulate: bool) -> None:
        import onnx

        self.onnx, self.emulate = onnx, emulate
        self.type = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
        self.model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        graph = self.model.graph
        self.constants = {each.name: each for each in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self.types = {each.name: each.type.tensor_type.elem_type for each in values}
        self.types.update({each.name: each.data_type for each in graph.initializer})
        self.readers: dict[str, set[str]] = {}  # operators that read a value
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, set()).add(node.op_type)
        self.halves: set[str] = set()  # values that are half in the new graph
        self.cast: dict[tuple[str, bool], str] = {}  # (value, half) -> that value in that type
        self.nodes: list[Any] = []
        self.tensors: list[Any] = list(graph.initializer)

    def run(self) -> Any:
        graph = self.model.graph
        for node in graph.node:
            self._refuse_strange(node)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._take_constant(node)
            else:
                self._convert(node)
        outputs = {each.name for each in graph.output}
        if not self.emulate:
            self._give_back(outputs & self.halves)
        used = {name for node in self.nodes for name in node.input} | outputs
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(each for each in self.tensors if each.name in used)
        return self.model

    def _refuse_strange(self, node: Any) -> None:
        unknown = [each for each in node.output if each and each not in self.types]
        branches = any(each.type == self.onnx.AttributeProto.GRAPH for each in node.attribute)
        if unknown or branches or node.domain not in ("", "ai.onnx"):
            raise ExportError(
                "an operator that cannot be converted to half precision",
                where=node.name or node.op_type,
                got=f"{node.domain or 'ai.onnx'}.{node.op_type}" + (", types unknown" if unknown else ""),
                expected="standard operators without branches",
                fix="--precision fp32 for this network",
            )

    def _take_constant(self, node: Any) -> None:
        tensor = self.onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        self.constants[tensor.name] = tensor
        self.types[tensor.name] = tensor.data_type
        self.tensors.append(tensor)

    def _convert(self, node: Any) -> None:
        new = self.onnx.NodeProto()
        new.CopyFrom(node)
        if node.op_type in _INDIFFERENT:
            self.nodes.append(new)
            return
        half = self._wants_half(node)
        new.input[: self._carriers(node)] = [
            self._as(name, half) if self._is_float(name) else name for name in node.input[: self._carriers(node)]
        ]
        self.nodes.append(new)
        if half:
            for index, name in enumerate(node.output):
                if self._is_float(name):
                    self.halves.add(name)
                    if self.emulate:
                        new.output[index] = f"{name}.exact"
                        self._round(f"{name}.exact", name)

    def _carriers(self, node: Any) -> int:
        return 1 if node.op_type in _FIRST_INPUT_ONLY else len(node.input)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == self.onnx.TensorProto.FLOAT

    def _wants_half(self, node: Any) -> bool:
        if node.op_type in COMPUTE or node.op_type in EXACT:
            return node.op_type in COMPUTE
        carriers = node.input[: self._carriers(node)]
        floats = [name for name in carriers if self._is_float(name)]
        given = [name for name in floats if name not in self.constants]
        if floats and not given:  # a weight on its way to its operator
            return all(self.readers.get(name, {""}) <= COMPUTE for name in node.output)
        return bool(given) and all(name in self.halves for name in given)

    def _as(self, name: str, half: bool) -> str:
        """The name of a value in the type wanted; a cast is added where it has the other."""
        if (name in self.halves) == half or (self.emulate and not half):
            return name
        key = (name, half)
        if key not in self.cast:
            self.cast[key] = f"{name}.{'half' if half else 'full'}"
            if name in self.constants:
                self.tensors.append(self._half_constant(self.constants[name], self.cast[key]))
            elif self.emulate:
                self._round(name, self.cast[key])
            else:
                self._add_cast(name, self.cast[key], self.type if half else self.onnx.TensorProto.FLOAT)
        return self.cast[key]

    def _half_constant(self, tensor: Any, name: str) -> Any:
        from ml_dtypes import bfloat16, finfo

        kind = np.dtype(np.float16) if self.type == self.onnx.TensorProto.FLOAT16 else np.dtype(bfloat16)
        limit = float(finfo(kind).max)  # type: ignore[no-untyped-call]
        exact = self.onnx.numpy_helper.to_array(tensor)
        values = np.where(np.isfinite(exact), np.clip(exact, -limit, limit), exact).astype(kind)
        return self.onnx.numpy_helper.from_array(values.astype(np.float32) if self.emulate else values, name)

    def _round(self, name: str, rounded: str) -> None:
        self._add_cast(name, f"{rounded}.bits", self.type)
        self._add_cast(f"{rounded}.bits", rounded, self.onnx.TensorProto.FLOAT)

    def _add_cast(self, name: str, target: str, kind: int) -> None:
        self.nodes.append(self.onnx.helper.make_node("Cast", [name], [target], to=kind, name=f"cast.{target}"))

    def _give_back(self, names: set[str]) -> None:
        """Outputs of the graph keep name and type; what computes them gets another name."""
        inner = {name: f"{name}.half" for name in names}
        for node in self.nodes:
            node.input[:] = [inner.get(name, name) for name in node.input]
            node.output[:] = [inner.get(name, name) for name in node.output]
        for name in sorted(names):
            self._add_cast(inner[name], name, self.onnx.TensorProto.FLOAT)
