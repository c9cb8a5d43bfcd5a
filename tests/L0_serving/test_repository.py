"""The rendered repository on the real server: networks are warm when it is ready, and the models of the rendering for
GPU servers, with Python in the place of the engines, answer as in-process."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import InputError, OptionError
from gaitsdk_export.formats import Profile, Range
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton import repository as rendering
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.config import Instances
from gaitsdk_export.triton.engines import Engine
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.lint import lint
from gaitsdk_export.triton.pbtxt import parse, to_text
from gaitsdk_export.triton.repository import TEMPLATES, Options, render
from gaitsdk_export.triton.server import TritonServer

#: In the place of the re-ranker's engine: the same tensors, by the SDK's own runtime.
RERANKER = """
import numpy as np
from gaitsdk_export.triton.backend import Batched


class TritonPythonModel(Batched):
    def open(self):
        self.networks = self.settings.open_networks(self.bundle)

    def read(self, request):
        arrays = self.require(request, "probe"), self.require(request, "candidates")
        return arrays[1].shape[1], arrays

    def run(self, k, probe, candidates):
        distances = self.networks.rerank(probe, candidates)
        return {"distances": distances, "order": np.argsort(distances, axis=1, kind="stable")}
"""


def batches(server: TritonServer, model: str) -> dict[int, int]:
    """Batch size -> executions, of the statistics endpoint; warm-up counts."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{model}/stats", timeout=10) as answer:
        found = json.load(answer)["model_stats"][0]["batch_stats"]
    return {each["batch_size"]: each["compute_infer"]["count"] for each in found}


def test_networks_are_warm_when_the_server_is_ready(
    installation: Installation, repository: Path, settings: Settings, tmp_path: Path
) -> None:
    fresh = replace(settings, gallery=str(tmp_path / "empty.db"))
    prepare_gallery(fresh)
    with TritonServer(repository, fresh, installation=installation) as server:
        # Nobody has asked for anything but one walk, and nobody is enrolled: the full batch was the warm-up.
        before = {name: batches(server, name) for name in ("embed", "rerank")}
        for found in before.values():
            assert set(found) == {1, Options.max_batch} and found[Options.max_batch] == Options.instances
        with Recognizer.connect(server.grpc_url, timeout=60) as remote:
            walk = synthetic.sequence(1, frames=30)
            remote.enroll("ann", walk)
            assert remote.identify(walk, threshold=1.0).identity == "ann"
            assert np.isfinite(remote.rerank(remote.embed(walk), np.stack([remote.embed(walk)] * 2))).all()
        for name, found in before.items():
            assert batches(server, name)[1] > found[1], "the first real request met a size that had run before"


@pytest.fixture(scope="module")
def gpu_repository(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rendering `tensorrt` with Python models in the place of its engines, which no CPU executes."""
    batch = Range(1, 2, 4)
    engines = {
        "backbone": Engine(b"", {}, (Profile({"batch": batch, "frames": Range(10, 20, 40)}),)),
        "reranker": Engine(b"", {}, (Profile({"batch": batch, "candidates": Range(1, 10, 20)}),)),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "read_engines", lambda bundle, networks: {name: engines[name] for name in networks})
        out = tmp_path_factory.mktemp("gpu") / "models"
        render(bundle_path, out, Options(rendering="tensorrt", weights=False))
    shared = parse((out / "check/config.pbtxt").read_text()).parameters
    codes = {"backbone": (TEMPLATES / "embed/model.py").read_text(), "reranker": RERANKER}
    for name, code in codes.items():
        config = parse((out / name / "config.pbtxt").read_text())
        # The stand-in for the backbone would refuse the empty frames that warm up an engine.
        warm = config.warmup if name == "reranker" else ()
        python = replace(config, backend="python", instances=(Instances(),), cuda_graphs=(), warmup=warm)
        (out / name / "config.pbtxt").write_text(to_text(replace(python, parameters=shared)))
        (out / name / "1" / "model.py").write_text(code)
        (out / name / "1" / "model.plan.export.json").unlink()
    assert lint(out) == []
    return out


@pytest.fixture(scope="module")
def gpu_server(installation: Installation, gpu_repository: Path, settings: Settings) -> Iterator[TritonServer]:
    with TritonServer(gpu_repository, settings, installation=installation) as running:
        yield running


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_models_around_the_engines_answer_as_in_process(
    gpu_server: TritonServer, local: Recognizer, scheme: str
) -> None:
    url = gpu_server.grpc_url if scheme == "grpc" else gpu_server.http_url
    with Recognizer.connect(url, timeout=60) as remote:
        about = remote.description
        assert (about.runtime, about.device) == ("tensorrt", "cuda")
        walks = [synthetic.sequence(each, type="nm-03", frames=frames) for each, frames in ((3, 12), (5, 31), (8, 40))]
        ours, theirs = local.identify_many(walks), remote.identify_many(walks)
        for mine, other in zip(ours, theirs, strict=True):
            assert [each.entry_id for each in other.candidates] == [each.entry_id for each in mine.candidates]
            np.testing.assert_allclose(
                [each.distance for each in other.candidates], [each.distance for each in mine.candidates], atol=1e-4
            )
            assert other.decision == mine.decision
        np.testing.assert_allclose(remote.embed(walks), local.embed(walks), atol=1e-5)
        assert remote.verify(walks[0], walks[1]).distance == pytest.approx(
            local.verify(walks[0], walks[1]).distance, abs=1e-4
        )


def test_what_no_engine_takes_is_refused_by_name(gpu_server: TritonServer) -> None:
    walk = synthetic.sequence(2, frames=41)
    with Recognizer.connect(gpu_server.grpc_url, timeout=60) as remote:
        with pytest.raises(InputError, match=r"41 frames.*10 to 40"):
            remote.embed(walk)
        with pytest.raises(OptionError, match="from 1 to 20"):
            remote.identify(walk[:30], k=21)
        with pytest.raises(InputError):
            remote.embed(np.zeros((20, 64, 64), np.uint8))
        # Shorter than the engine takes, but frames of this model may be repeated.
        assert remote.identify(walk[:8]).candidates
        assert remote.identify(walk[:30], k=20, threshold=1.0).candidates


def test_enrolling_goes_through_the_engines(gpu_server: TritonServer) -> None:
    with Recognizer.connect(gpu_server.grpc_url, timeout=60) as remote:
        walk = synthetic.sequence(77, frames=25)
        remote.enroll("somebody new", walk)
        assert remote.identify(walk, threshold=1.0).identity == "somebody new"
        assert remote.delete("somebody new") == 1
