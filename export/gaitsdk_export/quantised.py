"""INT8 in the ONNX graph itself: QuantizeLinear and DequantizeLinear around convolutions, by ONNX Runtime's quantiser.

Weights are int8, symmetric, with a scale per output channel. Scales of the maps come from calibration: walks that go
through the float32 graph once. Two graphs of the same network:

* for CPUs, maps are uint8 with a zero point and biases int32: what ONNX Runtime's integer kernels take;
* for engines, maps are int8 without a zero point and biases float32: all that TensorRT takes.

Convolutions and matrix products with flat weights are quantised, the rest (maxima, strips' own linear maps, softmax,
normalisation) stays float32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.datasets import SequenceTree
from gaitsdk.errors import ExportError
from gaitsdk_export.cases import as_input

Walks = Sequence[NDArray[np.uint8]]

#: Walks that the scales are taken from, and frames of each.
WALKS, FRAMES = 48, 16
#: What the scales of the maps come from. Scales that reach every outlier make all steps coarse, and blank parts of a
#: frame, which are most of it, then all err the same way. With a zero point the mean over walks of the least and
#: largest values was best, without one the range that holds this share of the values.
_PERCENTILE = 99.99
#: The first synthetic walker of the calibration: nobody whom the verdict on people asks for.
_FIRST_PERSON = 10_000
_VIEWS = ("000", "036", "054", "090", "108", "144")
_TYPES = ("nm-01", "bg-01", "cl-01")


def calibration_walks(bundle: Bundle, root: Path | None = None) -> Walks:
    """What to take the scales from.

    Args:
        bundle: whose input they must fit.
        root: a tree `<root>/<identity>/<type>/<view>/`, of which WALKS sequences are taken, spread evenly; None =
            synthetic walkers.

    Returns:
        Arrays uint8 `[1, FRAMES, (C,) S, S]`.

    Raises:
        DatasetError, InputError: the tree holds no usable sequence.
    """
    spec = bundle.manifest.input
    if root is None:
        drawn = (
            synthetic.sequence(_FIRST_PERSON + i, _TYPES[i % len(_TYPES)], _VIEWS[i % len(_VIEWS)], FRAMES)
            for i in range(WALKS)
        )
        return [as_input(each, spec.size, spec.channels)[None] for each in drawn]
    tree = SequenceTree(root)
    places = np.unique(np.linspace(0, len(tree) - 1, WALKS).astype(int))
    walks = (tree[int(place)].prepare(spec.size, channels=spec.channels).silhouettes for place in places)
    return [each.take(np.arange(FRAMES) % len(each), axis=0)[None] for each in walks]


def to_int8(model: Any, walks: Walks, *, engine: bool = False) -> Any:
    """A copy of a float32 graph whose convolutions are computed in INT8.

    Args:
        model: `onnx.ModelProto` of a backbone, one input; not changed.
        walks: what to take the scales from, arrays as the graph reads them.
        engine: the graph for TensorRT instead of that for CPUs.

    Returns:
        `onnx.ModelProto`, checked.

    Raises:
        ExportError: nothing in the graph can be quantised, or the quantiser refuses it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    nodes = _quantisable(model)
    if not nodes:
        raise ExportError("nothing in the graph can be quantised", fix="--precision fp32, fp16 or bf16")
    with tempfile.TemporaryDirectory(prefix="gaitsdk-int8-") as folder:
        target = Path(folder) / "int8.onnx"
        source = onnx.ModelProto()
        source.CopyFrom(model)
        try:
            with _quiet():
                quantize_static(
                    source,
                    str(target),
                    _reader(model.graph.input[0].name, walks),
                    quant_format=QuantFormat.QDQ,
                    nodes_to_quantize=nodes,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    activation_type=QuantType.QInt8 if engine else QuantType.QUInt8,
                    calibrate_method=CalibrationMethod.Percentile if engine else CalibrationMethod.MinMax,
                    extra_options={
                        "WeightSymmetric": True,
                        "ActivationSymmetric": engine,
                        "QuantizeBias": not engine,
                        "CalibMovingAverage": not engine,
                        "CalibPercentile": _PERCENTILE,
                    },
                )
            made = onnx.load(target)
            onnx.checker.check_model(made, full_check=True)
        # The quantiser, the runtime and the checker have exceptions of their own, with no common base class.
        except Exception as error:
            raise ExportError(
                "the graph cannot be quantised", got=str(error).strip()[:400], fix="--precision fp32, fp16 or bf16"
            ) from error
    notes = {**{each.key: each.value for each in model.metadata_props}, "gaitsdk.precision": "int8"}
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, notes)
    return made


def _quantisable(model: Any) -> list[str]:
    """Names of the nodes with a weight that has one scale per output channel."""
    axes = {each.name: len(each.dims) for each in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" or (node.op_type in ("Gemm", "MatMul") and axes.get(node.input[1]) == 2)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser prints its progress, and advises a preparation of the graph that torch's exporter has done."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _reader(name: str, walks: Walks) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._left: Iterator[NDArray[np.uint8]] = iter(walks)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            walk = next(self._left, None)
            return None if walk is None else {name: walk}

    return Reader()
