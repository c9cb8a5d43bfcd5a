"""Half precision in the graph: what is half, what stays float32, and whether the answers are still the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from gaitsdk.errors import ExportError, OptionError  # noqa: E402
from gaitsdk.models import list_models  # noqa: E402
from gaitsdk_export.eager import eager_network  # noqa: E402
from gaitsdk_export.half import COMPUTE, EXACT, to_half  # noqa: E402
from gaitsdk_export.parity import TOLERANCES, Verdict, check  # noqa: E402
from gaitsdk_export.to_onnx import assert_dynamic, onnx_network  # noqa: E402

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def types_of(model):
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    found = {each.name: each.type.tensor_type.elem_type for each in values}
    return found | {each.name: each.data_type for each in model.graph.initializer}


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "fp16") for name in (*sorted(list_models()), "cargait")]
    + [(name, "bf16") for name in ("cargait", "gaitpart", "gaitset", "swingait3d")],
)
def test_every_network_keeps_its_answers(name, precision, graph_of, quick_cases, tmp_path):
    """Batches 1, 2, 3, 8 of different items, three lengths, all-zero and all-one: cosine >= 0.999, nothing infinite."""
    graph = graph_of(name)
    exact = onnx.load(graph.path)
    half = to_half(exact, precision)
    onnx.save(half, tmp_path / "half.onnx")
    assert_dynamic(graph.wrapper, tmp_path / "half.onnx")
    # ONNX Runtime has no bfloat16 on a CPU: there the same arithmetic, rounded by casts.
    run = half if precision == "fp16" else to_half(exact, precision, emulate=True)
    report = check(
        eager_network(graph.wrapper),
        onnx_network(run.SerializeToString()),
        quick_cases(graph.wrapper),
        TOLERANCES[precision],
    )
    assert report.verdict is Verdict.OK, report.reasons
    assert report.cosine >= 0.999
    assert {case.name for case in report.cases} >= {"all zero", "all one"}

    types, wanted = types_of(half), HALF[precision]
    for node in half.graph.node:
        values = (node.input[0], *node.output) if node.op_type == "Resize" else (*node.input, *node.output)
        floats = {types[each] for each in values if types.get(each) in (TensorProto.FLOAT, wanted)}
        if node.op_type in COMPUTE:
            assert floats == {wanted}, node.name
        elif node.op_type in EXACT:
            assert floats <= {TensorProto.FLOAT}, node.name
        elif node.op_type != "Cast":
            assert len(floats) <= 1, node.name  # strongly typed: nothing is cast on the way
    # Weights are stored as they are used: none is cast, turned around or not, each time that the graph runs.
    fixed = {each.name for each in half.graph.initializer}
    for node in half.graph.node:
        assert node.op_type != "Cast" or node.input[0] not in fixed, node.name
        if set(node.input) <= fixed:
            fixed.update(node.output)
    assert {each.name: each.type.tensor_type.elem_type for each in half.graph.output} == {
        each.name: each.type.tensor_type.elem_type for each in exact.graph.output
    }
    notes = {each.key: each.value for each in half.metadata_props}
    assert (notes["gaitsdk.precision"], notes["gaitsdk.fingerprint"]) == (precision, "f" * 64)


def graph(nodes, initializers=(), shape=(2, 4)):
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, None)], list(initializers)
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def constant(name, values):
    return numpy_helper.from_array(np.array(values, np.float32), name)


def test_a_mask_stays_finite_and_softmax_exact():
    """-1e9 is minus infinity in fp16, and a row of it would come out of the softmax as NaN."""
    weight = constant("w", np.eye(4))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    half = to_half(graph(nodes, [weight, constant("mask", [-1e9] * 4)]), "fp16")
    kept = {each.name: numpy_helper.to_array(each) for each in half.graph.initializer}
    assert kept["mask.half"].dtype == np.float16 and np.isfinite(kept["mask.half"]).all()
    x = np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32)
    (y,) = onnx_network(half.SerializeToString())(x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-5)


def test_a_difference_of_inputs_stays_exact_up_to_its_norm():
    """Two features that agree in three digits have a distance; rounded to half before the difference they had none."""
    nodes = [helper.make_node("Sub", ["x", "c"], ["d"]), helper.make_node("ReduceL2", ["d"], ["y"])]
    half = to_half(graph(nodes, [constant("c", [[1.0001] * 4] * 2)]), "fp16")
    (y,) = onnx_network(half.SerializeToString())(np.ones((2, 4), np.float32))
    assert y.item() == pytest.approx(np.sqrt(8) * 1e-4, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_emulation_rounds_as_the_type_does(precision):
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", np.eye(4))])
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    (y,) = onnx_network(to_half(model, precision, emulate=True).SerializeToString())(x)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    np.testing.assert_array_equal(y, torch.from_numpy(x).to(kind).float().numpy())
    assert not np.array_equal(y, x)


def test_what_cannot_be_converted_is_refused():
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], [constant("w", np.eye(4))])
    with pytest.raises(OptionError, match="fp16 or bf16"):
        to_half(model, "int8")
    foreign = graph([helper.make_node("Strange", ["x"], ["y"], domain="some.company")])
    foreign.opset_import.append(helper.make_opsetid("some.company", 1))
    with pytest.raises(ExportError, match=r"some\.company\.Strange"):
        to_half(foreign, "fp16")
