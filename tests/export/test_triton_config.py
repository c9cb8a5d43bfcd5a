"""Configurations as typed objects, and the rendered repository."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.doctor import examine
from gaitsdk.errors import ExportError, OptionError, ServerError
from gaitsdk.models import create
from gaitsdk_export.triton.config import (
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
from gaitsdk_export.triton.installation import Installation, find_server
from gaitsdk_export.triton.pbtxt import parse, to_text
from gaitsdk_export.triton.repository import Options, configurations, differences, render

WITHOUT = Options(reranker="none")


@pytest.fixture(scope="module")
def bundle(bare_bundle: Path) -> Bundle:
    return Bundle.load(bare_bundle)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    backbone = create("gaitbase", channels=(8, 8, 16, 16), stem_stride=2, strides=(1, 2, 1, 1), dims=32, strips=16)
    return Bundle.create(tmp_path_factory.mktemp("bundle") / "plain.gait", backbone=backbone)


def test_every_configuration_survives_the_round_trip(bundle: Bundle) -> None:
    models = configurations(bundle, Options(max_batch=8, instances=3))
    assert [each.name for each in models] == ["embed", "shortlist", "rerank", "identify", "gallery"]
    for model in models:
        assert parse(to_text(model)) == model
        assert to_text(parse(to_text(model))) == to_text(model)


EVERYTHING = ModelConfig(
    name="a",
    backend="tensorrt_plan",
    inputs=(Tensor("x", "uint8", (-1, 4), ragged=True), Tensor("y", "bytes", (1,), optional=True)),
    outputs=(Tensor("z", "float32", (2, 3)),),
    max_batch_size=4,
    batching=Batching(max_delay_us=100, max_queue_size=9, preferred=(2, 4), timeout_us=5000, allow_shorter=True),
    instances=(
        Instances(
            2, "gpu", gpus=(0, 3), profiles=(0, 1), resources=(Resource("r", 2), Resource("s", every_device=True))
        ),
        Instances(),
    ),
    parameters={"quote": 'a "b"\n', "a": "1"},
    versions=Versions(specific=(1, 3)),
    warmup=(
        Warmup("zeros", {"x": Sample("uint8", (5, 4)), "y": Sample("bytes", (1,), "names")}, batch_size=4),
        Warmup("noise", {"x": Sample("uint8", (7, 4), "random")}),
    ),
    cuda_graphs=(CudaGraph(1, {"x": (5, 4)}), CudaGraph(4, {"x": (7, 4)})),
)


def test_text_is_triton_s() -> None:
    text = to_text(EVERYTHING)
    for piece in (
        'platform: "tensorrt_plan"',
        "data_type: TYPE_UINT8",
        "optional: true",
        "allow_ragged_batch: true",
        "max_queue_size: 9",
        "default_timeout_microseconds: 5000",
        "allow_timeout_override: true",
        "preferred_batch_size: 2",
        "kind: KIND_GPU",
        "kind: KIND_CPU",
        'profile: "1"',
        "global: true",
        "versions: 3",
        "random_data: true",
        "zero_data: true",
        'input_data_file: "names"',
        "graphs: true",
        "dim: 7",
        "response_cache {",
    ):
        assert piece in text, piece
    assert "timeout_action" not in text, "REJECT, the default"
    assert parse(text) == EVERYTHING
    assert to_text(parse(text)) == text


@pytest.mark.parametrize("versions", [Versions(), Versions(latest=1), Versions(latest=3), Versions(specific=(2,))])
def test_versions(versions: Versions) -> None:
    assert parse(to_text(replace(EVERYTHING, versions=versions))).versions == versions
    served = {(): [1, 2, 3], (2,): [2]}[versions.specific]
    assert versions.served([3, 1, 2]) == (served[-versions.latest :] if versions.latest else served)
    assert versions.served([]) == []


def test_what_proto3_leaves_out_is_written() -> None:
    text = to_text(replace(EVERYTHING, max_batch_size=0, batching=None))
    assert "max_batch_size: 0\n" in text and "response_cache {\n}" in text
    assert parse(text).max_batch_size == 0 and not parse(text).response_cache
    assert parse(to_text(replace(EVERYTHING, response_cache=True))).response_cache


@pytest.mark.parametrize(
    "text",
    ['name: "a"\nnonsense: 1', "name:", "max_batch_size: 9999999999999", "output { data_type: TYPE_FP17 dims: 1 }"],
)
def test_unusable_text_is_refused(text: str) -> None:
    with pytest.raises(ExportError):
        parse(text)
    with pytest.raises(ExportError, match="data type"):
        parse('input { name: "x" dims: 1 }')


def test_the_ensemble_s_wires_all_lead_somewhere(bundle: Bundle, plain: Bundle) -> None:
    for each, options in ((bundle, Options()), (bundle, WITHOUT), (plain, WITHOUT)):
        models = {model.name: model for model in configurations(each, options)}
        ensemble = models["identify"]
        known = {tensor.name: tensor for tensor in ensemble.inputs}
        for step in ensemble.steps:
            model = models[step.model]
            assert set(step.inputs) == {tensor.name for tensor in model.inputs}
            for tensor in model.inputs:
                source = known[step.inputs[tensor.name]]
                assert (source.data_type, source.dims) == (tensor.data_type, tensor.dims)
            for tensor in model.outputs:
                if tensor.name in step.outputs:
                    assert step.outputs[tensor.name] not in known
                    known[step.outputs[tensor.name]] = tensor
        for tensor in ensemble.outputs:
            assert known[tensor.name] == tensor
        assert isinstance(ensemble.steps[0], Step)


def test_identify_has_the_contract_s_tensors(bundle: Bundle) -> None:
    identify = next(each for each in configurations(bundle) if each.name == "identify")
    assert identify.inputs == (Tensor("silhouettes", "uint8", (-1, 64, 64)),)
    outputs = {each.name: (each.data_type, each.dims) for each in identify.outputs}
    expected = {
        "identity": ("bytes", (-1,)),
        "distance": ("float32", (-1,)),
        "shortlist_distance": ("float32", (-1,)),
        "shortlist_rank": ("int32", (-1,)),
        "decision": ("bytes", (1,)),
        "fingerprint": ("bytes", (1,)),
    }
    assert outputs.items() >= expected.items()


def test_without_reranker_there_is_no_rerank(bundle: Bundle, plain: Bundle) -> None:
    for each in (bundle, plain):
        models = {model.name: model for model in configurations(each, WITHOUT)}
        assert "rerank" not in models
        assert [step.model for step in models["identify"].steps] == ["embed", "shortlist"]
        assert {models[name].parameters["reranker"] for name in ("shortlist", "gallery")} == {"none"}


def test_the_bundle_s_own_list_is_never_too_long(bundle: Bundle) -> None:
    for asked, longest in ((100, "100"), (1000, "1000"), (1, str(bundle.manifest.reranker.k))):
        models = configurations(bundle, Options(max_k=asked))
        assert {model.parameters["max_k"] for model in models if "max_k" in model.parameters} == {longest}


def test_identify_walks_through_no_process_that_only_hands_on(bundle: Bundle) -> None:
    models = {model.name: model for model in configurations(bundle)}
    assert [step.model for step in models["identify"].steps] == ["embed", "shortlist"]
    handed = {tensor for step in models["identify"].steps for tensor in step.outputs.values()}
    assert not any("candidate" in tensor for tensor in handed), "feature maps of candidates stay in their process"
    assert models["rerank"].backend == "python", "still there for those who ask it"


def test_a_reranker_that_the_bundle_lacks_is_refused_as_in_process(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no CarGait weights"):
        render(plain.path, tmp_path / "models")
    with pytest.raises(OptionError, match="unknown re-ranker"):
        render(plain.path, tmp_path / "models", Options(reranker="magic"))
    assert not (tmp_path / "models").exists()


def test_deploy_takes_the_reranker(bundle: Bundle, plain: Bundle, tmp_path: Path) -> None:
    out = str(tmp_path / "models")
    assert deploy("--bundle", str(plain.path), "--out", out) == 2
    assert deploy("--bundle", str(bundle.path), "--out", out, "--reranker", "none") == 0
    assert not (tmp_path / "models" / "rerank").exists()
    assert deploy("--bundle", str(bundle.path), "--out", out, "--reranker", "none", "--check") == 0
    assert deploy("--bundle", str(bundle.path), "--out", out, "--check") == 1


def deploy(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/models"])
def test_a_place_that_cannot_be_written_is_named(
    bundle: Bundle, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        render(bundle.path, tmp_path / place)
    assert deploy("--bundle", str(bundle.path), "--out", str(tmp_path / place)) == 1
    assert "--out FOLDER" in " ".join(capsys.readouterr().err.split())


def test_names_are_printed_as_they_are(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "[red]x[" / ":smile:[/b]"
    assert deploy("--bundle", str(bundle.path), "--out", str(out)) == 0
    assert f"rendered {out}" in capsys.readouterr().err.replace("\n", "")
    (out / "[bold]").write_text("")
    assert deploy("--bundle", str(bundle.path), "--out", str(out), "--check") == 1
    assert "[bold]: unexpected" in capsys.readouterr().err


def test_rendering_is_stable_and_has_no_path_and_no_weights(bundle: Bundle, tmp_path: Path) -> None:
    first, second = render(bundle.path, tmp_path / "a"), render(bundle.path, tmp_path / "b")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in files:
        content = (first / name).read_bytes()
        assert content == (second / name).read_bytes()
        assert str(bundle.path).encode() not in content and len(content) < 200_000
    render(bundle.path, tmp_path / "a")
    assert differences(bundle.path, tmp_path / "a") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_differences_are_named(bundle: Bundle, tmp_path: Path) -> None:
    out = render(bundle.path, tmp_path / "models")
    (out / "embed" / "1" / "model.py").write_text("")
    (out / "rerank" / "config.pbtxt").unlink()
    (out / "extra").write_text("x")
    assert differences(bundle.path, out) == [
        "embed/1/model.py: changed",
        "extra: unexpected",
        "rerank/config.pbtxt: missing",
    ]
    assert "embed/config.pbtxt: changed" in differences(bundle.path, out, Options(instances=3))
    assert len(differences(bundle.path, tmp_path / "nothing")) == 11


def test_a_folder_with_something_else_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match=r"thesis\.txt"):
        render(bundle.path, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"instances": True}, {"max_queue": -1}, {"max_batch": 2.0}, {"max_k": 1001}]
)
def test_impossible_options(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Options(**options)
    assert replace(Options(), max_batch=4).max_batch == 4


def test_a_server_that_a_variable_names_is_used_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_SERVER", str(tmp_path / "none"))
    with pytest.raises(ServerError, match="TRITON_SERVER"):
        find_server()
    assert "TRITON_SERVER" in examine()["tritonserver"], "the doctor looks where `serve` does"
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("TRITON_SERVER", str(program))
    assert find_server() == Installation(program.resolve())
    assert examine()["tritonserver"] == str(program.resolve())
    monkeypatch.delenv("TRITON_SERVER")
    monkeypatch.setenv("GAITSDK_TRITON_DIR", str(tmp_path))
    with pytest.raises(ServerError, match="pip install --no-deps --target"):
        find_server()
    monkeypatch.delenv("GAITSDK_TRITON_DIR")
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_server() == Installation(program.resolve())


def test_the_server_sees_the_import_path_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Editable installs and PYTHONPATH too, and without writing bytecode: asked of the interpreter that is laid out."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    wheel = tmp_path / "wheel"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (
        "bin/tritonserver",
        "backends/python/utils.py",
        f"python_backend_stubs/{version}/triton_python_backend_stub",
    ):
        path = wheel / "pytriton" / "tritonserver" / name
        path.parent.mkdir(parents=True)
        path.write_text("")
    installation = Installation(wheel / "pytriton/tritonserver/bin/tritonserver", wheel)
    _, environment = installation.arrange(tmp_path / "run")
    assert (tmp_path / "run" / "backends" / "python" / "triton_python_backend_stub").is_file()
    python = Path(environment["PATH"].split(os.pathsep)[0]) / "python3"
    code = "import sys, numpy, gaitsdk, gaitsdk_export, only_here; print(sys.dont_write_bytecode, numpy.__version__)"
    answer = subprocess.run([python, "-E", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", numpy.__version__]


def test_the_committed_repository_is_what_the_shipped_bundle_renders() -> None:
    committed = Path(__file__).parents[2] / "triton_models"
    if not Bundle.default_path().exists():
        pytest.skip("there is no shipped bundle yet")
    assert differences(None, committed) == [], "render it again: gaitsdk deploy --out triton_models"
