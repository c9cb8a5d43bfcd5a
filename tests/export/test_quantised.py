"""INT8 in the graph: which operators, which types, whose scales, and whether the answers are nearly the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from gaitsdk import synthetic  # noqa: E402
from gaitsdk.bundle import Bundle  # noqa: E402
from gaitsdk.errors import BundleError, DatasetError, ExportError, RuntimeUnavailableError  # noqa: E402
from gaitsdk.runtimes import open_runtime  # noqa: E402
from gaitsdk_export import exporters, quantised, task  # noqa: E402
from gaitsdk_export.bundles import export_bundle  # noqa: E402
from gaitsdk_export.cases import as_input, embedder_cases  # noqa: E402
from gaitsdk_export.eager import eager_network  # noqa: E402
from gaitsdk_export.parity import Tolerance, Verdict, check  # noqa: E402
from gaitsdk_export.quantised import calibration_walks, to_int8  # noqa: E402
from gaitsdk_export.to_onnx import assert_dynamic, onnx_network  # noqa: E402
from gaitsdk_export.to_tensorrt import build_engine, engine_shapes, find_target  # noqa: E402


def walks(wrapper, count=4):
    return [
        as_input(synthetic.sequence(person, frames=9), wrapper.size, wrapper.channels)[None] for person in range(count)
    ]


def has_vnni():
    """Whether this CPU multiplies uint8 with int8 without overflow."""
    flags = Path("/proc/cpuinfo")
    return not flags.is_file() or "vnni" in flags.read_text()


@pytest.fixture(scope="module", params=["gaitbase", "gaitgl", "swingait3d"])
def graph(request, graph_of):
    return graph_of(request.param)


@pytest.mark.parametrize("engine", [False, True], ids=["cpu", "engine"])
def test_convolutions_are_int8_and_answers_stay_near(graph, engine, tmp_path, quick_cases):
    exact = onnx.load(graph.path)
    before = exact.SerializeToString()
    made = to_int8(exact, walks(graph.wrapper), engine=engine)
    assert exact.SerializeToString() == before
    onnx.save(made, tmp_path / "int8.onnx")
    assert_dynamic(graph.wrapper, tmp_path / "int8.onnx")
    # Untrained weights and four walks: a right graph, not the accuracy that a trained one reaches. And without VNNI a
    # CPU adds pairs of uint8 x int8 in 16 bits, which saturate (SwinGait 0.849 on such a one).
    near = 0.9 if engine or has_vnni() else 0.8
    report = check(
        eager_network(graph.wrapper),
        onnx_network(tmp_path / "int8.onnx"),
        [each for each in quick_cases(graph.wrapper) if "walkers" in each.name],
        Tolerance(max_abs=None, cosine=near, relative=0.5),
    )
    assert report.verdict is Verdict.OK, report.reasons
    assert report.max_abs > 0

    producer = {output: node for node in made.graph.node for output in node.output}
    fixed = {each.name: each for each in made.graph.initializer}
    convolutions = [node for node in made.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        maps, weights = (producer[name] for name in node.input[:2])
        assert (maps.op_type, weights.op_type) == ("DequantizeLinear", "DequantizeLinear"), node.name
        assert fixed[weights.input[0]].data_type == TensorProto.INT8
        scales, zero = numpy_helper.to_array(fixed[weights.input[1]]), numpy_helper.to_array(fixed[weights.input[2]])
        assert scales.size == fixed[weights.input[0]].dims[0] and not zero.any()  # a scale per output channel
        kind = TensorProto.INT8 if engine else TensorProto.UINT8
        assert fixed[maps.input[2]].data_type == kind
        if engine:
            assert not numpy_helper.to_array(fixed[maps.input[2]]).any()  # TensorRT takes no zero point
            assert len(node.input) < 3 or node.input[2] in fixed  # nor an int32 bias
    notes = {each.key: each.value for each in made.metadata_props}
    assert (notes["gaitsdk.precision"], notes["gaitsdk.fingerprint"]) == ("int8", "f" * 64)


def test_tensorrt_builds_the_graph_for_engines(rtx, graph_of):
    graph = graph_of("gaitbase")
    made = to_int8(onnx.load(graph.path), walks(graph.wrapper), engine=True).SerializeToString()
    profiles = exporters_sizes().profiles(graph.wrapper, 10)
    engine = build_engine(find_target("tensorrt-rtx", rtx, "int8", (89,)), made, engine_shapes(graph.wrapper, profiles))
    assert len(engine) > 10_000


def exporters_sizes():
    from gaitsdk_export.formats import Range, Sizes

    return Sizes(Range(1, 2, 4), (Range(5, 8, 16),))


def test_scales_come_from_the_walks_given(graph_of):
    graph = graph_of("gaitbase")
    exact = onnx.load(graph.path)
    blank = [np.zeros_like(each) for each in walks(graph.wrapper)]
    drawn = to_int8(exact, walks(graph.wrapper)).SerializeToString()
    assert drawn == to_int8(exact, walks(graph.wrapper)).SerializeToString()
    assert drawn != to_int8(exact, blank).SerializeToString()


def test_a_graph_without_convolutions_is_refused():
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    empty = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, (1,))], [value("y", TensorProto.FLOAT, (1,))])
    with pytest.raises(ExportError, match="nothing in the graph"):
        to_int8(helper.make_model(empty), [])


@pytest.fixture
def bundle_path(tiny_bundle, tmp_path, monkeypatch):
    """A copy of the tiny bundle; few walks are drawn, compared and judged."""

    def few(size, channels=1, batches=(1, 3), lengths=(5, 9)):
        return embedder_cases(size, channels, batches, lengths)

    monkeypatch.setattr(exporters, "embedder_cases", few)
    for module, name, value in ((quantised, "WALKS", 6), (task, "IDENTITIES", 12), (task, "FRAMES", 3)):
        monkeypatch.setattr(module, name, value)
    shutil.copytree(tiny_bundle, tmp_path / "tiny.gait")
    return tmp_path / "tiny.gait"


@pytest.fixture
def lenient(monkeypatch):
    """Random weights are no trained ones: what is tested is the way, not the accuracy."""
    monkeypatch.setitem(exporters.parity.TOLERANCES, "int8", Tolerance(max_abs=None, cosine=0.5, relative=1.0))
    monkeypatch.setitem(task.ROUNDING, "int8", 1.0)
    monkeypatch.setattr(task, "_rank1", lambda _distances, _labels: 90.0)


@pytest.fixture
def tree(tmp_path):
    for person in ("a", "b", "c"):
        folder = tmp_path / "tree" / person / "nm-01" / "090"
        folder.mkdir(parents=True)
        np.save(folder / "walk.npy", synthetic.sequence(ord(person), frames=20))
    return tmp_path / "tree"


@pytest.mark.usefixtures("lenient")
def test_a_bundle_gets_an_int8_backbone_that_the_runtime_takes(bundle_path, tree):
    results = export_bundle(bundle_path, ["onnx"], precisions=["int8"], calibration=tree)
    assert [(each.network, each.verdict) for each in results] == [
        ("backbone", Verdict.OK),
        ("reranker", Verdict.SKIPPED),
    ]
    assert results[0].task is not None  # people are judged without being asked for
    record = json.loads((bundle_path / "artefacts/backbone.int8.onnx.export.json").read_text())
    assert record["calibration"] == {"walks": 3, "from": str(tree)}
    assert record["reproduce"].endswith(f"--to onnx --precision int8 --calibration {tree}")
    bundle = Bundle.load(bundle_path)
    exact, fast = (open_runtime(bundle, name, "cpu") for name in ("onnx", "onnx-int8"))
    walk = synthetic.sequence(3, frames=12)[None]
    a, b = exact.embed(walk), fast.embed(walk)
    assert fast.name == "onnx-int8" and not np.array_equal(a, b)
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.9
    features = np.random.default_rng(0).standard_normal((1, 3, *a.shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(fast.rerank(a, features), exact.rerank(a, features))  # in fp32 both
    assert open_runtime(bundle).name == "onnx"  # never chosen for anybody


@pytest.mark.usefixtures("lenient")
def test_lost_people_keep_int8_out_of_the_bundle(bundle_path, monkeypatch):
    before = (bundle_path / "manifest.json").read_bytes()
    monkeypatch.setattr(task, "_rank1", lambda _distances, _labels, seen=[]: seen.append(0) or 100.0 - len(seen))
    backbone, _ = export_bundle(bundle_path, ["onnx-int8"])
    assert backbone.verdict is Verdict.FAIL and "over synthetic people: Rank-1" in backbone.reason
    assert (bundle_path / "manifest.json").read_bytes() == before
    with pytest.raises(RuntimeUnavailableError, match="--to onnx-int8"):
        open_runtime(Bundle.load(bundle_path), "onnx-int8")


def test_walks_for_the_scales(tiny_bundle, tree, tmp_path):
    bundle = Bundle.load(tiny_bundle)
    drawn = calibration_walks(bundle)
    assert len(drawn) == quantised.WALKS
    assert {(each.shape, each.dtype.name) for each in drawn} == {((1, quantised.FRAMES, 64, 64), "uint8")}
    assert len({each.tobytes() for each in drawn}) == len(drawn)
    own = calibration_walks(bundle, tree)
    assert [each.shape for each in own] == [(1, quantised.FRAMES, 64, 64)] * 3
    with pytest.raises(DatasetError):
        export_bundle(tiny_bundle, ["onnx-int8"], calibration=tmp_path / "none")


def test_an_int8_artefact_of_another_bundle_is_refused(bundle_path, lenient, tmp_path):
    (made, _) = export_bundle(bundle_path, ["onnx-int8"])
    record_path = made.path.with_name(f"{made.path.name}.export.json")
    record = {**json.loads(record_path.read_text()), "fingerprint": "0" * 64}
    bundle = Bundle.load(bundle_path)
    shutil.copyfile(made.path, tmp_path / "copy.onnx")
    bundle.add_artefact("backbone", "onnx-int8", tmp_path / "copy.onnx", record)
    with pytest.raises(BundleError, match="stale"):
        open_runtime(Bundle.load(bundle_path), "onnx-int8")
