"""Rendering into a folder: versions beside each other, all or nothing, and what the server warms up with."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gaitsdk.bundle import Bundle
from gaitsdk.checks import check_silhouettes
from gaitsdk.cli import main
from gaitsdk.errors import ExportError
from gaitsdk_export.triton import repository, warmup
from gaitsdk_export.triton.config import Batching
from gaitsdk_export.triton.lint import lint
from gaitsdk_export.triton.pbtxt import parse
from gaitsdk_export.triton.repository import Options, configurations, differences, render


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def deploy(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", *arguments])
    return int(ended.value.code or 0)


def test_a_new_version_keeps_the_old_one_and_is_served(bare_bundle: Path, tmp_path: Path) -> None:
    out = render(bare_bundle, tmp_path / "models")
    (out / "embed/1/model.py").write_text("# the old one")
    arguments = ["--bundle", str(bare_bundle), "--out", str(out), "--version-number", "2"]
    assert deploy(*arguments) == 0
    assert (out / "embed/1/model.py").read_text() == "# the old one"
    assert sorted(path.name for path in (out / "identify").iterdir()) == ["1", "2", "config.pbtxt"]
    assert all(parse(path.read_text()).versions.specific == (2,) for path in out.glob("*/config.pbtxt"))
    assert deploy(*arguments, "--check") == 0
    assert differences(bare_bundle, out, Options(version=2)) == [] and lint(out) == []
    # Back to the first: it is written again, and served.
    render(bare_bundle, out, Options(version=1))
    assert parse((out / "embed/config.pbtxt").read_text()).versions.served([1, 2]) == [1]
    assert "the old one" not in (out / "embed/1/model.py").read_text()
    assert (out / "embed/2/model.py").is_file()
    (out / "embed/2/model.py").unlink()
    assert [str(each).partition(":")[0] for each in lint(out)] == ["embed/2/model.py"]


def test_a_full_disk_leaves_the_old_repository_and_nothing_else(
    bare_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = render(bare_bundle, tmp_path / "models")
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # smaller than the walk that warms up `embed`
    try:
        with pytest.raises(ExportError, match="cannot be written"):
            render(bare_bundle, out, Options(max_batch=2))
        with pytest.raises(ExportError, match="cannot be written"):
            render(bare_bundle, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_failure_at_the_last_step_brings_the_old_repository_back(
    bare_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = render(bare_bundle, tmp_path / "models")
    before, replace_file = contents(out), repository.os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(target) == out and not Path(source).name.endswith(".old"):
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(ExportError, match="No space left"):
        render(bare_bundle, out, Options(max_batch=2))
    monkeypatch.undo()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_engines_are_linked_from_version_to_version(bare_bundle: Path, tmp_path: Path) -> None:
    out = render(bare_bundle, tmp_path / "models")
    large = out / "embed/1/model.py"
    number = large.stat().st_ino
    render(bare_bundle, out, Options(version=7))
    assert large.stat().st_ino == number and large.stat().st_nlink == 1


@pytest.mark.parametrize(("size", "channels"), [(64, 1), (128, 1), (64, 3)])
def test_the_drawn_walk_passes_for_silhouettes(size: int, channels: int) -> None:
    walk = warmup.walk(size, channels)
    check_silhouettes(walk, size, channels=channels)
    np.testing.assert_array_equal(walk, warmup.walk(size, channels))


def test_networks_are_warmed_up_with_real_shapes(bare_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bare_bundle)
    models = {each.name: each for each in configurations(bundle, Options(max_batch=6))}
    assert {name for name, model in models.items() if model.warmup} == {"embed", "rerank"}
    for name in ("embed", "rerank"):
        assert [each.batch_size for each in models[name].warmup] == [1, 6]
        for request in models[name].warmup:
            for tensor in (each for each in models[name].inputs if not each.optional):
                sample = request.inputs[tensor.name]
                assert sample.data_type == tensor.data_type and -1 not in sample.dims
                assert all(want in (-1, got) for want, got in zip(tensor.dims, sample.dims, strict=True))
    file = render(bare_bundle, tmp_path / "models") / "embed" / "warmup" / warmup.WALK
    given = models["embed"].warmup[0].inputs["silhouettes"]
    assert given.data == file.name and file.stat().st_size == np.prod(given.dims)
    # What is no network has nothing to load, and some of them could not answer.
    others = {each.name: each for each in configurations(bundle, Options(reranker="k-reciprocal"))}
    assert {name for name, model in others.items() if model.warmup} == {"embed"}


def test_requests_wait_for_embed_within_limits_and_are_finished_then(bare_bundle: Path) -> None:
    options = Options(max_queue=7, queue_timeout_us=1500, max_delay_us=20)
    for model in configurations(Bundle.load(bare_bundle), options):
        assert not model.response_cache
        if model.name in ("identify", "gallery"):
            assert model.batching is None
        else:
            limited = Batching(20, 7, (), 1500, allow_shorter=True)
            assert model.batching == (limited if model.name == "embed" else Batching(20, 0))
            taken = [each.name for each in model.instances[0].resources]
            assert taken == (["network"] if model.name in ("embed", "rerank") else [])


def test_rendering_over_another_bundle_s_repository(bare_bundle: Path, tmp_path: Path) -> None:
    out = render(bare_bundle, tmp_path / "models")
    render(bare_bundle, out, replace(Options(), reranker="none"))
    assert not (out / "rerank").exists(), "a model that is not rendered any more would be served still"
    shutil.rmtree(out / "shortlist")
    render(bare_bundle, out)
    assert differences(bare_bundle, out) == []
