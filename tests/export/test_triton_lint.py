"""Mistakes in a model repository, each found and named with its place and its mending."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gaitsdk.cli import main
from gaitsdk.errors import ExportError
from gaitsdk_export.triton.config import Instances, ModelConfig, Step, Tensor, Versions
from gaitsdk_export.triton.lint import LONG, Finding, lint, shared_memory
from gaitsdk_export.triton.pbtxt import parse, to_text
from gaitsdk_export.triton.repository import render


@pytest.fixture
def ours(bare_bundle: Path, tmp_path: Path) -> Path:
    return render(bare_bundle, tmp_path / "models")


def places(found: list[Finding]) -> list[str]:
    return [each.where for each in found]


def put(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_ours_has_none(ours: Path) -> None:
    assert lint(ours, free=2**40) == []


@pytest.mark.parametrize(
    ("stray", "where", "word"),
    [
        ("notes/readme.txt", "notes", "does not start"),
        ("__pycache__/a.pyc", "__pycache__", "does not start"),
        ("notes.txt", "notes.txt", "nobody reads"),
        ("embed/model.py", "embed/model.py", "nobody reads"),
        ("embed/v2/model.py", "embed/v2", "nobody reads"),
        ("embed/1/__pycache__/model.pyc", "embed/1/__pycache__", "PYTHONDONTWRITEBYTECODE"),
        ("embed/warmup/old", "embed/warmup/old", "nobody reads"),
        ("identify/1/model.py", "identify/1/model.py", "no weights"),
    ],
)
def test_what_nobody_reads(ours: Path, stray: str, where: str, word: str) -> None:
    put(ours / stray)
    (found,) = lint(ours)
    assert found.where == where and word in str(found) and "remove it" in found.fix


def test_what_is_missing(ours: Path) -> None:
    (ours / "embed/warmup/walk-30").unlink()
    (ours / "rerank/1/model.py").unlink()
    (ours / "shortlist/1").rename(ours / "shortlist/3")
    found = lint(ours)
    assert places(found) == ["embed/warmup/walk-30", "rerank/1/model.py", "shortlist"]
    assert "wanted is 1, there is 3" in found[-1].what


def test_configurations_that_cannot_be_read(ours: Path) -> None:
    put(ours / "rerank/config.pbtxt", 'name: "rerank"\nnonsense: 1')
    (ours / "shortlist/config.pbtxt").write_bytes(b"\xff\xfe")
    change(ours, "embed", lambda model: replace(model, name="ebmed"))
    found = {each.where: str(each) for each in lint(ours) if "identify" not in each.where}
    assert set(found) == {"rerank/config.pbtxt", "shortlist/config.pbtxt", "embed/config.pbtxt"}
    assert "nonsense" in found["rerank/config.pbtxt"] and "'ebmed'" in found["embed/config.pbtxt"]


def change(repository: Path, name: str, edit: Callable[[ModelConfig], ModelConfig]) -> None:
    file = repository / name / "config.pbtxt"
    file.write_text(to_text(edit(parse(file.read_text()))))


def step_of(model: ModelConfig, name: str, edit: Callable[[Step], Step]) -> ModelConfig:
    return replace(model, steps=tuple(edit(each) if each.model == name else each for each in model.steps))


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("identify", lambda m: step_of(m, "shortlist", lambda s: replace(s, model="search")), ["'search'", "no step"]),
        (
            "identify",
            lambda m: step_of(m, "shortlist", lambda s: replace(s, inputs={"probe": "embed_features"})),
            ["probe"],
        ),
        ("identify", lambda m: step_of(m, "embed", lambda s: replace(s, outputs={})), ["nobody gives"]),
        ("identify", lambda m: replace(m, max_batch_size=99), ["batches of 99"]),
        ("identify", lambda m: replace(m, outputs=(*m.outputs, Tensor("age", "int32", (1,)))), ["'age'"]),
        ("identify", lambda m: replace(m, outputs=(Tensor("distance", "float64", (-1,)),)), ["comes as float32"]),
        ("embed", lambda m: replace(m, outputs=(Tensor("features", "float32", (31, 32)),)), ["[-1, 31, 32]"]),
        ("shortlist", lambda m: replace(m, inputs=(Tensor("features", "float16", (16, 32)),)), ["takes float16"]),
        ("shortlist", lambda m: replace(m, max_batch_size=0), ["batches of", "takes"]),
    ],
)
def test_ensembles_that_do_not_fit(
    ours: Path, name: str, edit: Callable[[ModelConfig], ModelConfig], words: list[str]
) -> None:
    change(ours, name, edit)
    found = lint(ours)
    assert found and {each.where for each in found} == {"identify/config.pbtxt"}
    for word in words:
        assert any(word in each.what for each in found), (word, found)


def test_a_repository_of_somebody_else(tmp_path: Path) -> None:
    """Other backends, types and settings are no mistakes, and neither is a file that the configuration names."""
    put(
        tmp_path / "resnet/config.pbtxt",
        'name: "resnet" platform: "onnxruntime_onnx" max_batch_size: 8\n'
        'input { name: "x" data_type: TYPE_FP16 dims: [3, 224, 224] }\n'
        'output { name: "y" data_type: TYPE_BF16 dims: 1000 label_filename: "labels.txt" }\n'
        "sequence_batching { } optimization { graph { level: 1 } }",
    )
    put(tmp_path / "resnet/labels.txt")
    put(tmp_path / "resnet/3/model.onnx")
    put(tmp_path / "custom/config.pbtxt", 'backend: "mine" version_policy { latest { num_versions: 2 } }')
    put(tmp_path / "custom/1/anything.bin")
    (tmp_path / "custom/2").mkdir()
    found = lint(tmp_path)
    assert places(found) == ["custom/2/*"], found
    assert Versions(latest=2) == parse((tmp_path / "custom/config.pbtxt").read_text()).versions


def test_shared_memory(ours: Path) -> None:
    model = ModelConfig(
        name="m",
        backend="python",
        inputs=(Tensor("x", "uint8", (-1, 64, 64)),),
        outputs=(Tensor("y", "float32", (16, 32)), Tensor("z", "bool", (2,))),
        max_batch_size=4,
        instances=(Instances(2), Instances(1)),
    )
    assert shared_memory([model]) == 3 * (2**20 + 4 * (LONG * 64 * 64 + 4 * 16 * 32 + 2))
    assert shared_memory([replace(model, backend="tensorrt_plan")]) == 0
    needed = shared_memory([parse(path.read_text()) for path in ours.glob("*/config.pbtxt")])
    assert lint(ours, free=needed) == []
    (found,) = lint(ours, free=2**20)
    assert f"{needed / 2**20:.0f} MiB" in found.what and "1 MiB" in found.what and "--shm-size" in found.fix


def test_the_command(ours: Path, bare_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def deploy(*arguments: str) -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as ended:
            main(["deploy", "--out", str(ours), *arguments])
        said = capsys.readouterr()
        told.append(said.out)
        return int(ended.value.code or 0), said.err.splitlines()

    told: list[str] = []
    bundle = ["--bundle", str(bare_bundle)]
    assert deploy("--lint") == (0, [f"{ours}: no mistakes"])
    assert deploy("--check", *bundle)[0] == 0
    put(ours / "embed/1/__pycache__/a.pyc")
    code, lines = deploy("--lint")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("embed/1/__pycache__: ")
    code, lines = deploy("--check", *bundle)
    assert code == 1 and lines[0] == "embed/1/__pycache__/a.pyc: unexpected" and len(lines) == 2
    assert deploy("--check", "--json", *bundle) == (1, [])
    assert json.loads(told[-1]) == {"repository": str(ours), "mistakes": lines}
    assert deploy("--json", *bundle) == (0, []) and json.loads(told[-1]) == {"rendered": str(ours)}
    code, lines = deploy("--lint", "--out", str(ours / "nothing"))
    assert code == 1 and "cannot be read" in " ".join(lines)
    with pytest.raises(ExportError, match="cannot be read"):
        lint(ours / "nothing")
