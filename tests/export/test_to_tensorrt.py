"""Real engines, built ahead of time on the CPU by TensorRT for RTX; and the path of plain TensorRT over a stand-in."""

from __future__ import annotations

import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from gaitsdk.errors import ExportError, OptionError, RuntimeUnavailableError  # noqa: E402
from gaitsdk.models import list_models  # noqa: E402
from gaitsdk_export.formats import Range, Sizes, parse_capabilities  # noqa: E402
from gaitsdk_export.half import to_half  # noqa: E402
from gaitsdk_export.to_tensorrt import (  # noqa: E402
    Target,
    build_engine,
    engine_shapes,
    find_target,
    known_capabilities,
    require_single_file,
)

SIZES = Sizes(Range(1, 2, 8), (Range(3, 15, 30),))


def engine_of(rtx, graph, precision, capabilities=(80, 86, 89, 120), **more):
    exact = onnx.load(graph.path)
    model = exact if precision == "fp32" else to_half(exact, precision)
    target = find_target("tensorrt-rtx", rtx, precision, capabilities)
    shapes = engine_shapes(graph.wrapper, SIZES.profiles(graph.wrapper, 5))
    return build_engine(target, model.SerializeToString(), shapes, **more)


@pytest.mark.parametrize("name", [*sorted(list_models()), "cargait"])
def test_every_network_becomes_an_engine_for_sm80_to_sm120(name, rtx, graph_of):
    engine = engine_of(rtx, graph_of(name), "fp16")
    assert len(engine) > 10_000


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gaitbase", "cargait"])
def test_in_every_precision(name, precision, rtx, graph_of):
    assert len(engine_of(rtx, graph_of(name), precision)) > 10_000


def test_several_profiles_and_phases_of_the_build(rtx, graph_of):
    graph = graph_of("gaitset")
    sizes = Sizes(Range(1, 2, 8), (Range(5, 10, 15), Range(15, 30, 60)))
    lines: list[str] = []
    target = find_target("tensorrt-rtx", rtx, "fp32", (86,))
    shapes = engine_shapes(graph.wrapper, sizes.profiles(graph.wrapper, 0))
    assert [each["silhouettes"][2][:2] for each in shapes] == [(8, 15), (8, 60)]
    assert build_engine(target, graph.path.read_bytes(), shapes, progress=lines.append)
    assert lines and "steps" in lines[0]


def test_a_limit_of_scratch_memory(rtx, graph_of):
    graph = graph_of("gaitbase")
    least, target = (find_target("tensorrt-rtx", rtx, "fp32", (89,), workspace_mib=mib) for mib in (1, 64))
    shapes = engine_shapes(graph.wrapper, Sizes(Range(1, 8, 64), (Range(15, 30, 120),)).profiles(graph.wrapper, 0))
    with pytest.raises(ExportError, match=r"more scratch memory .*; expected at most \d+ MiB") as refused:
        build_engine(target, graph.path.read_bytes(), shapes)
    with pytest.raises(ExportError, match=r"workspace limit.* Fix: a larger --workspace than 1"):
        build_engine(least, graph.path.read_bytes(), shapes)
    wanted = int(refused.value.got.removesuffix(" MiB"))
    assert 1 < wanted < 2**20 and f"--workspace {wanted}" in refused.value.fix
    enough = find_target("tensorrt-rtx", rtx, "fp32", (89,), workspace_mib=wanted)
    assert len(build_engine(enough, graph.path.read_bytes(), shapes)) > 10_000


def test_what_tensorrt_for_rtx_builds_for(rtx):
    known = known_capabilities(rtx)
    assert {75, 80, 86, 89, 120} <= set(known)
    assert find_target("tensorrt-rtx", rtx, "fp16").capabilities == known
    # 7.5 has no matrix products in float32 and no bfloat16 there: left out, or refused where nothing else is asked for.
    assert find_target("tensorrt-rtx", rtx, "fp32", (75, 86)).capabilities == (86,)
    with pytest.raises(RuntimeUnavailableError, match="fp16 only"):
        find_target("tensorrt-rtx", rtx, "bf16", (75,))
    with pytest.raises(OptionError, match=r"got 90; expected of 75"):
        find_target("tensorrt-rtx", rtx, "fp16", (80, 90))


def test_a_graph_that_the_parser_refuses_makes_no_engine(rtx):
    value = helper.make_tensor_value_info
    node = helper.make_node("Strange", ["x"], ["y"], domain="some.company")
    graph = helper.make_graph([node], "g", [value("x", 1, (2, 2))], [value("y", 1, (2, 2))])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("some.company", 1)]
    )
    target = find_target("tensorrt-rtx", rtx, "fp32", (89,))
    with pytest.raises(ExportError, match=r"cannot parse the graph; got .*(Strange|Plugin not found)"):
        build_engine(target, model.SerializeToString(), [{"x": ((2, 2),) * 3}])


def test_a_profile_that_does_not_fit_the_graph_makes_no_engine(rtx, graph_of):
    graph = graph_of("gaitset")
    shapes = [{"silhouettes": ((1, 5, 32, 32), (2, 5, 32, 32), (8, 5, 32, 32))}]  # frames of another size
    target = find_target("tensorrt-rtx", rtx, "fp32", (89,))
    with pytest.raises(ExportError, match="tensorrt-rtx"):
        build_engine(target, graph.path.read_bytes(), shapes)


def test_ctrl_c_cancels_the_build(rtx, graph_of):
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_of(rtx, graph_of("gaitset"), "fp32", progress=interrupt)


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../outside"])
def test_weights_in_other_files_are_refused(location):
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    value = helper.make_tensor_value_info
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", 1, (2, 2))], [value("y", 1, (2, 2))], [tensor])
    with pytest.raises(ExportError, match="weights in other files"):
        require_single_file(helper.make_model(graph).SerializeToString())
    with pytest.raises(ExportError, match="not an ONNX graph"):
        require_single_file(b"\xff garbage")


class Stage:
    """A stand-in for `tensorrt` that notes what is asked of it; `refuse` makes it fail at one step."""

    def __init__(self, refuse: str = "", typed_flag: bool = True) -> None:
        self.__version__ = "10.9.0"
        self.calls: list[tuple] = []
        stage = self

        class ILogger:
            Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)

        class IProgressMonitor:
            pass

        class Parser:
            num_errors = 1 if refuse == "parse" else 0

            def __init__(self, network, log):
                pass

            def parse(self, data):
                return refuse != "parse"

            def get_error(self, i):
                return types.SimpleNamespace(node_name=lambda: "node 7", desc=lambda: "no such operator")

        class Cache:
            def serialize(self):
                return b"measured"

        class Config:
            def set_memory_pool_limit(self, pool, limit):
                stage.calls.append(("workspace", limit))

            def clear_flag(self, flag):
                stage.calls.append(("clear", flag))

            def add_optimization_profile(self, profile):
                return 0

            def create_timing_cache(self, known):
                stage.calls.append(("timing", known))
                return Cache()

            def set_timing_cache(self, cache, ignore_mismatch):
                return True

            def get_timing_cache(self):
                return Cache()

        class Builder:
            def __init__(self, log):
                self.log = log

            def create_network(self, flags):
                stage.calls.append(("network", flags))

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return types.SimpleNamespace(set_shape=lambda *shape: stage.calls.append(("shape", *shape)))

            def build_serialized_network(self, network, config):
                if refuse == "build":
                    self.log.log(ILogger.Severity.ERROR, "out of tactics")
                    return None
                return memoryview(b"an engine")

        flags = {"STRONGLY_TYPED": 3} if typed_flag else {}
        self.ILogger, self.IProgressMonitor, self.OnnxParser, self.Builder = ILogger, IProgressMonitor, Parser, Builder
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(**flags)
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        self.BuilderFlag = types.SimpleNamespace(TF32="tf32")


@pytest.fixture(scope="module")
def small() -> bytes:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, (2, 2))], [value("y", 1, (2, 2))]
    )
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(("typed_flag", "flags"), [(True, 1 << 3), (False, 0)], ids=["10", "11"])
def test_plain_tensorrt_goes_the_same_way(small, tmp_path, typed_flag, flags):
    stage = Stage(typed_flag=typed_flag)
    target = Target("tensorrt", stage, (89,), "NVIDIA L4", workspace_mib=512)
    timing = tmp_path / "x.timing"
    timing.write_bytes(b"earlier")
    shapes = [{"x": ((1, 2), (2, 2), (8, 2))}]
    assert build_engine(target, small, shapes, timing_cache=timing) == b"an engine"
    assert stage.calls == [
        ("network", flags), ("workspace", 512 << 20), ("clear", "tf32"), ("shape", "x", (1, 2), (2, 2), (8, 2)),
        ("timing", b"earlier"),
    ]  # fmt: skip
    assert timing.read_bytes() == b"measured"
    assert [each.name for each in tmp_path.iterdir()] == ["x.timing"]


@pytest.mark.parametrize(("step", "said"), [("parse", "node 7: no such operator"), ("build", "out of tactics")])
def test_what_tensorrt_says_stands_in_the_message(small, step, said):
    target = Target("tensorrt", Stage(refuse=step), (89,), "NVIDIA L4")
    with pytest.raises(ExportError, match=f"tensorrt 10.9.0 cannot {step} the graph; got {said}"):
        build_engine(target, small, [{"x": ((1, 2),) * 3}])


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_plain_tensorrt_needs_a_gpu():
    with pytest.raises(RuntimeUnavailableError, match="--to tensorrt-rtx"):
        find_target("tensorrt", Stage(), "fp16")


def test_key_tells_engines_apart(small):
    target = Target("tensorrt", Stage(), (89,), "NVIDIA L4")
    profiles = SIZES.profiles(_Axes(), 10)
    key = target.key(small, "fp16", profiles)
    assert key.profiles == ({"batch": [1, 2, 8], "frames": [3, 15, 30]},)
    assert key.gpu == "NVIDIA L4" and key.builder_version == "10.9.0" and key.compute_capabilities == (89,)
    assert target.key(small + b"x", "fp16", profiles).digest != key.digest


class _Axes:
    dynamic_axes = {"silhouettes": {0: "batch", 1: "frames"}}  # noqa: RUF012
    least = {"frames": 3}  # noqa: RUF012


def test_ranges_and_capabilities_are_checked():
    assert Range.parse("1:8:64") == Range(1, 8, 64) and Range.parse("8") == Range(8, 8, 8)
    assert Range.parse_all("15:30:60,60:90:120") == (Range(15, 30, 60), Range(60, 90, 120))
    for text in ("8:1:64", "0:1:2", "1:2", "a:b:c", "", "1:2:3:4", "-1:2:3"):
        with pytest.raises(OptionError):
            Range.parse(text, "--batch")
    assert parse_capabilities(["8.9", "sm75", 120, "75"]) == (75, 89, 120)
    for text in ("ninety", "8", "-80"):
        with pytest.raises(OptionError, match="compute capability"):
            parse_capabilities([text])
    with pytest.raises(OptionError, match="3 or more"):
        Sizes(frames=(Range(1, 2, 3),)).profiles(_Axes(), 0)
    assert Sizes().profiles(_Reranker(), 10)[0].to_dict() == {"batch": [1, 8, 64], "candidates": [1, 10, 100]}


class _Reranker:
    dynamic_axes = {"probe": {0: "batch"}, "candidates": {0: "batch", 1: "candidates"}}  # noqa: RUF012
    least = {}  # noqa: RUF012


def test_file_names_of_all_kinds_differ():
    from gaitsdk.bundle import ARTEFACT_SUFFIX
    from gaitsdk_export.formats import FORMATS, plan

    jobs = plan(FORMATS, ("fp32", "fp16", "bf16"))
    suffixes = [ARTEFACT_SUFFIX[each.kind] for each in jobs if each.format != "torchscript"]
    assert len(jobs) == 12 and len(set(suffixes)) == len(suffixes) == 9
    assert all(each.endswith((".onnx", ".plan")) for each in suffixes)
    assert [each.kind for each in plan("onnx-fp16", ("fp32",))] == ["onnx-fp16"]
