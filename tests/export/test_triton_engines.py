"""The rendering for GPU servers: engines as models, and limits that are the engines' own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gaitsdk.bundle import Bundle
from gaitsdk.cli import main
from gaitsdk.errors import BundleError, ExportError, OptionError
from gaitsdk.pipeline import PADDING_LIMIT
from gaitsdk.runtimes.tensorrt_runtime import Machine
from gaitsdk_export.formats import Profile, Range
from gaitsdk_export.triton.config import Versions
from gaitsdk_export.triton.engines import Engine, frame_buckets, lengthened
from gaitsdk_export.triton.lint import lint
from gaitsdk_export.triton.pbtxt import parse, to_text
from gaitsdk_export.triton.repository import Options, configurations, differences, render

GPU = Options(rendering="tensorrt")
HERE = Machine("10.13.0", "8.9", "NVIDIA L4")
BACKBONE = [{"batch": [1, 4, 32], "frames": [15, 30, 60]}, {"batch": [1, 4, 32], "frames": [61, 90, 120]}]
RERANKER = [{"batch": [1, 4, 32], "candidates": [1, 10, 50]}]
Build = Callable[..., Bundle]


def add_engine(bundle: Bundle, network: Any, profiles: list[dict[str, list[int]]], **changes: Any) -> None:
    """Adds a file that is no engine, with the record that a real one would have."""
    source = bundle.path / f"{network}.new"
    source.write_bytes(f"not really an engine of the {network}".encode())
    names = {"backbone": (["silhouettes"], ["features"]), "reranker": (["probe", "candidates"], ["distances", "order"])}
    engine = {"builder": "tensorrt", "builder_version": HERE.version, "compute_capabilities": [89], "gpu": HERE.gpu}
    record = {
        "format": "tensorrt",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "source_sha256": bundle.manifest.files[f"{network}.safetensors"].sha256,
        "fingerprint": bundle.fingerprint,
        "verdict": "OK",
        "inputs": {name: {} for name in names[network][0]},
        "outputs": {name: {} for name in names[network][1]},
        "max_batch_size": profiles[0]["batch"][-1],
        "engine": {**engine, "profiles": profiles},
    }
    bundle.add_artefact(network, "tensorrt", source, {**record, **changes})


@pytest.fixture
def build(bare_bundle: Path, tmp_path: Path) -> Build:
    """Makes a bundle with engines; None = without one."""

    def make(backbone: Any = BACKBONE, reranker: Any = RERANKER, **changes: Any) -> Bundle:
        path = tmp_path / "engines.gait"
        shutil.copytree(bare_bundle, path)
        bundle = Bundle.load(path)
        for network, profiles in (("backbone", backbone), ("reranker", reranker)):
            if profiles is not None:
                add_engine(bundle, network, profiles, **changes)
        return Bundle.load(path)

    return make


def deploy(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "--rendering", "tensorrt", *arguments])
    return int(ended.value.code or 0)


def test_the_engines_decide_every_limit(build: Build) -> None:
    models = {each.name: each for each in configurations(build(), GPU)}
    backbone, reranker = models["backbone"], models["reranker"]
    assert {each.max_batch_size for each in models.values() if each.name != "gallery"} == {32}
    assert models["gallery"].parameters["max_batch"] == "32"
    for plan in (backbone, reranker):
        assert plan.backend == "tensorrt_plan" and plan.batching is not None
        assert plan.batching.preferred == (4,) and plan.batching.max_queue_size == GPU.max_queue
        assert {each.batch_size for each in plan.warmup} == {1, 4, 32}
        assert {each.batch_size for each in plan.cuda_graphs} == {1, 4}
        assert [group.kind for group in plan.instances] == ["gpu"]
    assert backbone.instances[0].profiles == (0, 1) and reranker.instances[0].profiles == ()
    lengths = {request.inputs["silhouettes"].dims[0] for request in backbone.warmup}
    assert min(lengths) >= 15 and max(lengths) == 120 and 60 in lengths
    assert {graph.shapes["silhouettes"] for graph in backbone.cuda_graphs} == {(t, 64, 64) for t in lengths}
    assert {request.inputs["candidates"].dims for request in reranker.warmup} == {(k, 16, 32) for k in (1, 10, 50)}
    assert models["check"].parameters["frames"] == "15:30:60,61:90:120"
    assert models["shortlist"].parameters["max_k"] == models["decide"].parameters["max_k"] == "50"


def test_every_sequence_that_an_engine_takes_reaches_a_warm_size(build: Build) -> None:
    profiles = tuple(Profile({axis: Range(*sizes) for axis, sizes in each.items()}) for each in BACKBONE)
    engine = Engine(b"", {}, profiles)
    frames = engine.sizes("frames")
    buckets = frame_buckets(engine, "cyclic")
    for length in range(1, 121):
        fitted = lengthened(frames, length, "cyclic")
        assert fitted in buckets and length <= fitted <= max(15, PADDING_LIMIT * length), length
    assert lengthened(frames, 121, "cyclic") is None
    assert [lengthened(frames, length, "alone") for length in (14, 15, 33, 61, 121)] == [None, 15, 33, 61, None]
    assert frame_buckets(engine, "alone") == [15, 30, 60, 61, 90, 120]


def test_clients_meet_the_same_tensors_as_in_the_portable_rendering(build: Build) -> None:
    bundle = build()
    gpu = {each.name: each for each in configurations(bundle, GPU)}
    for portable in configurations(bundle):
        same = gpu[portable.name]
        needed = [replace(each, ragged=False) for each in portable.inputs if not each.optional or each in same.inputs]
        assert needed == list(same.inputs), portable.name
        assert set(same.outputs) <= set(portable.outputs), portable.name
    assert [step.model for step in gpu["embed"].steps] == ["check", "backbone"]
    assert [step.model for step in gpu["identify"].steps] == ["embed", "shortlist", "rerank", "decide"]


def test_the_engines_tensors_are_those_of_the_exported_graphs(build: Build) -> None:
    pytest.importorskip("torch")
    from gaitsdk_export.wrappers import EmbedderForExport, RerankerForExport

    bundle = build()
    models = {each.name: each for each in configurations(bundle, GPU)}
    spec, reranker = bundle.manifest.input, bundle.build_reranker()
    wrappers = {
        "backbone": EmbedderForExport(bundle.build_backbone(), spec.size, spec.channels),
        "reranker": RerankerForExport(reranker, bundle.strips, bundle.dims),
    }
    for name, wrapper in wrappers.items():
        example = dict(zip(wrapper.input_names, wrapper.example(), strict=True))
        answers = wrapper(*example.values())
        results = dict(zip(wrapper.output_names, answers if isinstance(answers, tuple) else (answers,), strict=True))
        for side, tensors in ((models[name].inputs, example), (models[name].outputs, results)):
            assert [each.name for each in side] == list(tensors)
            for tensor in side:
                real = tensors[tensor.name]
                assert tensor.data_type == str(real.dtype).removeprefix("torch.")
                assert all(mine in (-1, size) for mine, size in zip(tensor.dims, real.shape[1:], strict=True))


def test_the_repository_holds_engines_and_records_and_passes_lint(build: Build, tmp_path: Path) -> None:
    bundle = build()
    out = render(bundle.path, tmp_path / "models", GPU)
    assert (out / "backbone/1/model.plan").read_bytes() == b"not really an engine of the backbone"
    record = json.loads((out / "reranker/1/model.plan.export.json").read_text())
    assert record["engine"]["profiles"] == RERANKER
    assert not (out / "backbone/1/model.py").exists() and (out / "check/1/model.py").exists()
    assert differences(bundle.path, out, GPU) == []
    assert lint(out, HERE) == []
    for path in out.glob("*/config.pbtxt"):
        model = parse(path.read_text())
        assert to_text(model) == path.read_text() and model.versions == Versions(specific=(1,))
    assert deploy("--bundle", str(bundle.path), "--out", str(out), "--check") == 0


def test_without_weights_lint_says_where_to_put_them(build: Build, tmp_path: Path) -> None:
    bundle, out = build(), tmp_path / "models"
    assert deploy("--bundle", str(bundle.path), "--out", str(out), "--without-weights") == 0
    assert not list(out.rglob("*.plan"))
    found = [str(each) for each in lint(out)]
    assert [line.partition(":")[0] for line in found] == ["backbone/1/model.plan", "reranker/1/model.plan"]
    assert all("missing" in line and "--rendering tensorrt" in line for line in found)


@pytest.mark.parametrize(
    ("machine", "phrase"),
    [
        (replace(HERE, version="10.14.1"), "built by tensorrt 10.13.0, here is 10.14.1"),
        (replace(HERE, compute_capability="9.0"), "this GPU has 9.0"),
        (replace(HERE, gpu="NVIDIA T4"), "this GPU is NVIDIA T4"),
    ],
)
def test_an_engine_of_another_machine(build: Build, tmp_path: Path, machine: Machine, phrase: str) -> None:
    out = render(build().path, tmp_path / "models", GPU)
    found = lint(out, machine)
    assert [each.where for each in found] == ["backbone/1/model.plan", "reranker/1/model.plan"]
    assert all(phrase in each.what for each in found)
    assert lint(out) == [], "no machine, no comparison"


def test_engines_and_records_that_do_not_belong_together(build: Build, tmp_path: Path) -> None:
    out = render(build().path, tmp_path / "models", GPU)
    (out / "backbone/1/model.plan").write_bytes(b"another")
    record = out / "reranker/1/model.plan.export.json"
    content = json.loads(record.read_text())
    content["engine"]["builder"], content["max_batch_size"], content["inputs"] = "tensorrt-rtx", 8, {"query": {}}
    record.write_text(json.dumps(content))
    found = {each.where: each.what for each in lint(out, HERE)}
    assert "sha256" in found["backbone/1/model.plan"]
    assert "tensorrt-rtx" in found["reranker/1/model.plan"]
    assert [each.what for each in lint(out) if each.where == "reranker/config.pbtxt"] == [
        "max_batch_size 32, but the engine takes 8",
        "tensors candidates, distances, order, probe, but the engine has distances, order, query",
    ]
    record.write_text("[]")
    assert any("not the record" in each.what for each in lint(out))
    record.unlink()
    assert any("nobody knows" in each.what for each in lint(out))


@pytest.mark.parametrize(
    ("backbone", "reranker", "error", "message"),
    [
        (None, None, ExportError, "no TensorRT engines"),
        (BACKBONE, None, ExportError, "gaitsdk export .* --to tensorrt"),
        ([{"batch": [2, 4, 8], "frames": [15, 30, 60]}], RERANKER, ExportError, "no single item"),
        (BACKBONE, [{"batch": [1, 4, 32], "candidates": [5, 10, 50]}], ExportError, "no single item"),
        (BACKBONE, [{"batch": [1, 4, 8], "candidates": [1, 10, 50]}], ExportError, "different batches"),
        (BACKBONE, [{"batch": [1, 4, 32], "candidates": [1, 2, 5]}], ExportError, "--candidates 1:10:100"),
        (BACKBONE, [{"batch": [1, 4, 32]}], BundleError, "does not say"),
    ],
)
def test_bundles_without_engines_that_serve(
    build: Build, tmp_path: Path, backbone: Any, reranker: Any, error: type[Exception], message: str
) -> None:
    bundle = build(backbone, reranker)
    with pytest.raises(error, match=message):
        render(bundle.path, tmp_path / "models", GPU)
    assert not (tmp_path / "models").exists()


def test_an_engine_of_other_weights_is_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="stale"):
        render(build(source_sha256="0" * 64).path, tmp_path / "models", GPU)


def test_a_reranker_that_is_no_network_stays_in_python(build: Build) -> None:
    bundle = build(reranker=None)
    models: Mapping[str, Any] = {each.name: each for each in configurations(bundle, replace(GPU, reranker="lbr"))}
    assert "reranker" not in models and models["rerank"].backend == "python" and not models["rerank"].warmup
    assert [step.model for step in models["identify"].steps] == ["embed", "shortlist"]
    assert "rerank" not in {each.name for each in configurations(bundle, replace(GPU, reranker="none"))}


def test_options_that_do_not_go_together(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = build()
    assert {each.gpus for model in configurations(bundle, replace(GPU, gpus=(0, 2))) for each in model.instances} == {
        (),
        (0, 2),
    }
    with pytest.raises(OptionError, match="choose their device"):
        Options(gpus=(0,))
    with pytest.raises(OptionError, match="portable or tensorrt"):
        Options(rendering="onnx")
    for wrong in (["--max-batch", "8"], ["--gpus", "cuda:0"]):
        assert deploy("--bundle", str(bundle.path), *wrong) == 2
        assert wrong[0] in capsys.readouterr().err
