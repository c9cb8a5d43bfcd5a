"""The adapter that runs engines: what can be tested without a GPU, and the whole where there is one."""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gaitsdk import Recognizer, synthetic  # noqa: E402
from gaitsdk.bundle import Bundle  # noqa: E402
from gaitsdk.errors import InputError, MissingDependencyError, RuntimeUnavailableError  # noqa: E402
from gaitsdk.runtimes import open_runtime, tensorrt_runtime  # noqa: E402
from gaitsdk.runtimes.tensorrt_engines import EngineNetwork, Limits, repeat  # noqa: E402
from gaitsdk.runtimes.tensorrt_runtime import Machine, TensorRTRuntime, import_tensorrt, misfits  # noqa: E402

BUILT = {"builder": "tensorrt", "builder_version": "10.9.0", "compute_capabilities": [89], "gpu": "NVIDIA L4"}
HERE = Machine("10.9.0", "8.9", "NVIDIA L4")


def test_an_engine_of_this_machine_fits():
    assert misfits(BUILT, HERE) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"builder_version": "10.3.0"}, "built by tensorrt 10.3.0, here is 10.9.0"),
        ({"compute_capabilities": [86, 120]}, "built for compute capability 8.6, 12.0, this GPU has 8.9"),
        ({"gpu": "NVIDIA L40S"}, "built on NVIDIA L40S, this GPU is NVIDIA L4"),
        ({"compute_capabilities": []}, "unknown"),
    ],
)
def test_a_foreign_engine_is_told_by_what_differs(change, text):
    (found,) = misfits({**BUILT, **change}, HERE)
    assert text in found


def test_an_engine_of_tensorrt_for_rtx_fits_every_gpu_of_its_list():
    built = {**BUILT, "builder": "tensorrt-rtx", "gpu": None, "compute_capabilities": [80, 89]}
    assert misfits(built, HERE) == []
    assert misfits(built, Machine("10.9.0", "12.0", "NVIDIA GeForce RTX 5090"))


def test_sizes_are_padded_within_the_profile():
    limits = Limits.from_record({"batch": [1, 8, 48], "frames": [15, 30, 120]})
    assert limits.bucket({"batch": 3, "frames": 17}, cyclic=True) == {"batch": 4, "frames": 24}
    assert limits.bucket({"batch": 33, "frames": 119}, cyclic=True) == {"batch": 48, "frames": 120}
    assert limits.bucket({"batch": 1, "frames": 2}, cyclic=True) == {"batch": 1, "frames": 15}
    # Frames that may not be repeated stay as they are, or have no place in this engine.
    assert limits.bucket({"batch": 5, "frames": 17}, cyclic=False) == {"batch": 8, "frames": 17}
    assert limits.bucket({"batch": 1, "frames": 2}, cyclic=False) is None
    assert limits.bucket({"batch": 1, "frames": 121}, cyclic=True) is None
    lists = Limits.from_record({"batch": [2, 8, 64], "candidates": [1, 10, 100]})
    assert lists.bucket({"batch": 1, "candidates": 7}, cyclic=True) == {"batch": 2, "candidates": 7}


def test_repeating_goes_on_from_the_start():
    array = np.arange(3)[:, None] * np.ones((1, 2))
    np.testing.assert_array_equal(repeat(array, {0: 5, 1: 2})[:, 0], [0, 1, 2, 0, 1])
    assert repeat(array, {0: 3}) is array


class Lane:
    """Stands for the GPU: gives each item's mean, and notes the shapes that came."""

    def __init__(self):
        self.seen = []

    def run(self, profile, arrays):
        self.seen.append((profile, [each.shape for each in arrays]))
        return [arrays[0].reshape(len(arrays[0]), -1).mean(axis=1, keepdims=True)]


@pytest.fixture
def network():
    """An EngineNetwork whose one lane needs no GPU."""
    made = object.__new__(EngineNetwork)
    made._profiles = [
        Limits.from_record({"batch": [1, 4, 8], "frames": [4, 8, 16]}),
        Limits.from_record({"batch": [1, 4, 8], "frames": [16, 32, 64]}),
    ]
    made._cyclic, made._where = False, "backbone.plan"
    made._lanes = queue.LifoQueue()
    lane = Lane()
    made._lanes.put(lane)
    return made, lane


def test_large_batches_go_in_parts_and_padding_is_cut_off(network):
    run, lane = network
    batch = np.random.default_rng(1).random((19, 5, 2, 2))
    (found,) = run(batch)
    np.testing.assert_allclose(found[:, 0], batch.mean(axis=(1, 2, 3)))
    assert [shapes[0][:2] for _, shapes in lane.seen] == [(8, 5), (8, 5), (4, 5)]
    assert run(np.zeros((1, 40, 2, 2)))[0].shape == (1, 1)
    assert lane.seen[-1] == (1, [(1, 40, 2, 2)])  # the second profile


def test_sizes_that_no_profile_takes_are_refused(network):
    run, lane = network
    with pytest.raises(InputError, match=r"frames 3.*frames 4 to 16; or .*frames 16 to 64.*--frames"):
        run(np.zeros((1, 3, 2, 2)))
    assert lane.seen == [] and run._lanes.qsize() == 1


def test_a_bundle_without_engines_says_how_to_make_them(tiny_bundle):
    with pytest.raises(RuntimeUnavailableError, match=r"no TensorRT engines.*--to tensorrt"):
        open_runtime(Bundle.load(tiny_bundle), "tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="no TensorRT engines"):
        Recognizer.load(tiny_bundle, runtime="tensorrt", gallery=":memory:")


@pytest.fixture
def with_engines(tiny_bundle, tmp_path):
    """A bundle that lists engines: no GPU would run them, and none is reached."""
    copy = tmp_path / "tiny.gait"
    shutil.copytree(tiny_bundle, copy)
    bundle = Bundle.load(copy)
    for name in ("backbone", "reranker"):
        engine = tmp_path / f"{name}.plan"
        engine.write_bytes(b"an engine")
        profile = {"batch": [1, 8, 64], "frames": [15, 30, 120]}
        bundle.add_artefact(name, "tensorrt", engine, {"engine": {**BUILT, "profiles": [profile]}})
    return Bundle.load(copy)


def test_without_the_package_the_message_has_the_pip_line(with_engines, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt_runtime.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="pip install tensorrt"):
        TensorRTRuntime(with_engines)
    with pytest.raises(MissingDependencyError, match="tensorrt-rtx-cu13-libs"):
        import_tensorrt("tensorrt-rtx")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3"])
def test_without_a_gpu_it_is_refused_not_replaced(with_engines, monkeypatch, device):
    monkeypatch.setattr(tensorrt_runtime, "import_tensorrt", lambda _format: object())
    with pytest.raises(RuntimeUnavailableError, match=r"GPU|CUDA"):
        open_runtime(with_engines, "tensorrt", device=device)


def test_a_foreign_engine_is_refused_before_it_is_loaded(with_engines, monkeypatch):
    """Its record is read on a machine that is another one."""
    path = with_engines.path / "artefacts" / "backbone.plan.export.json"
    record = json.loads(path.read_text())
    engine = with_engines.artefact("backbone", "tensorrt")
    moved = Path(shutil.copy(engine, with_engines.path.parent / "moved"))
    known = {
        "sha256": hashlib.sha256(moved.read_bytes()).hexdigest(),
        "source_sha256": with_engines.manifest.files["backbone.safetensors"].sha256,
        "fingerprint": with_engines.fingerprint,
        "verdict": "OK",
    }
    with_engines.add_artefact("backbone", "tensorrt", moved, {**record, **known})
    monkeypatch.setattr(tensorrt_runtime, "import_tensorrt", lambda _format: object())
    monkeypatch.setattr(tensorrt_runtime, "pick_device", lambda _torch, _device: "cuda:0")
    monkeypatch.setattr(tensorrt_runtime, "machine", lambda *_: Machine("10.16.1", "9.0", "NVIDIA H200"))
    with pytest.raises(RuntimeUnavailableError) as caught:
        open_runtime(Bundle.load(with_engines.path), "tensorrt")
    for text in ("10.9.0", "10.16.1", "8.9", "9.0", "NVIDIA L4", "NVIDIA H200", "gaitsdk export", "--precision fp32"):
        assert text in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("format", tensorrt_runtime.ENGINE_FORMATS)
def test_engines_give_the_same_answers_on_this_gpu(tiny_bundle, tmp_path, format):
    from gaitsdk_export.bundles import export_bundle
    from gaitsdk_export.engine_cache import EngineCache
    from gaitsdk_export.formats import Range, Sizes

    copy = tmp_path / "tiny.gait"
    shutil.copytree(tiny_bundle, copy)
    sizes = Sizes(Range(1, 2, 8), (Range(8, 16, 32),))
    results = export_bundle(copy, [format], sizes=sizes, cache=EngineCache(tmp_path / "cache"))
    if any(each.path is None or each.latency_ms is None for each in results):
        pytest.skip("; ".join(str(each.reason) for each in results))
    assert {each.verdict.value for each in results} == {"OK"}
    engines, eager = open_runtime(Bundle.load(copy), "tensorrt"), open_runtime(Bundle.load(copy), "torch")
    walks = np.stack([synthetic.sequence(person, frames=20) for person in range(5)])
    features = engines.embed(walks)
    np.testing.assert_allclose(features, eager.embed(walks), atol=1e-3 * np.abs(features).max())
    np.testing.assert_allclose(engines.embed(walks), features)  # the CUDA graph, the second time
    lists = np.stack([features] * 5)
    np.testing.assert_allclose(engines.rerank(features, lists), eager.rerank(features, lists), atol=1e-3)
