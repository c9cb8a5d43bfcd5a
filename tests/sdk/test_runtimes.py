"""Every runtime gives the same answers, says where it runs, and refuses what it cannot do."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from gaitsdk import runtimes, synthetic
from gaitsdk.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    OptionError,
    RuntimeUnavailableError,
    SilhouetteShapeError,
    SilhouetteValueError,
    UnknownRuntimeError,
)
from gaitsdk.runtimes import NetworkRuntime, open_runtime, protocol
from gaitsdk.runtimes.torch_runtime import Graphs

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from gaitsdk.bundle import Bundle  # noqa: E402
from gaitsdk.models import create  # noqa: E402
from gaitsdk.models.cargait import CarGait  # noqa: E402

NAMES = ("torch", "torchscript", "onnx")
HALF = ("torch-bf16", "torch-fp16")


def build(path, reranker=True):
    torch.manual_seed(5)
    model = create("gaitset", channels=(4, 8, 8), dims=8).eval()
    cargait = CarGait(dims=8, width=16, heads=4)
    torch.nn.init.normal_(cargait.output.weight, std=0.3)
    return Bundle.create(path, backbone=model, reranker=cargait.eval() if reranker else None, k=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    export = pytest.importorskip("gaitsdk_export.bundles")
    path = tmp_path_factory.mktemp("runtimes") / "tiny.gait"
    build(path)
    # Not compared here: tests/export does that, and the tests below compare with the eager networks themselves.
    for result in export.export_bundle(path, verify=False):
        assert result.path is not None, result.reason
    return Bundle.load(path)


@pytest.fixture
def bare(tmp_path):
    """A bundle without artefacts and without re-ranker."""
    return build(tmp_path / "bare.gait", reranker=False)


@pytest.fixture(scope="module", params=NAMES)
def runtime(request, bundle):
    opened = open_runtime(bundle, request.param, device="cpu")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def eager(bundle):
    """The networks by hand, with nothing of the runtimes."""
    backbone, reranker = bundle.build_backbone(), bundle.build_reranker()

    def embed(silhouettes):
        with torch.inference_mode():
            return backbone(torch.from_numpy(silhouettes[..., 10:54].astype(np.float32) / 255)).numpy()

    def rerank(probe, candidates):
        with torch.inference_mode():
            return reranker(torch.from_numpy(probe), torch.from_numpy(candidates)).numpy()

    return embed, rerank


@pytest.fixture(scope="module")
def walks():
    drawn = np.stack([synthetic.sequence(person, frames=12, seed=person) for person in range(4)])
    drawn.setflags(write=False)
    return drawn


def pairs(bundle, batch, k, seed=0):
    random = np.random.default_rng(seed)
    shape = (bundle.strips, bundle.dims)
    return (
        random.standard_normal((batch, *shape)).astype(np.float32),
        random.standard_normal((batch, k, *shape)).astype(np.float32),
    )


def test_protocol_and_names(runtime):
    assert isinstance(runtime, NetworkRuntime)
    assert runtime.name in NAMES
    assert runtime.device == "cpu"


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 12), (2, 7), (3, 12), (4, 5)])
def test_embed_is_the_eager_network(runtime, eager, walks, batch, frames):
    silhouettes = walks[:batch, :frames]
    features = runtime.embed(silhouettes)
    assert features.dtype == np.float32
    assert features.flags.c_contiguous and features.flags.writeable
    np.testing.assert_allclose(features, eager[0](silhouettes), atol=1e-5)


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (1, 10), (3, 5), (2, 40)])
def test_rerank_is_the_eager_network(runtime, eager, bundle, batch, k):
    probe, candidates = pairs(bundle, batch, k)
    distances = runtime.rerank(probe, candidates)
    assert distances.shape == (batch, k)
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, eager[1](probe, candidates), atol=1e-4)
    np.testing.assert_array_equal(np.argsort(distances), np.argsort(eager[1](probe, candidates)))


def test_batch_mates_do_not_matter(runtime, walks):
    together = runtime.embed(walks)
    for i, walk in enumerate(walks):
        np.testing.assert_allclose(together[i], runtime.embed(walk[None])[0], atol=1e-5)


def test_slices_join_seamlessly(runtime, walks, bundle, monkeypatch):
    whole = runtime.embed(walks)
    probe, candidates = pairs(bundle, 5, 4)
    distances = runtime.rerank(probe, candidates)
    monkeypatch.setitem(protocol.FRAMES_PER_CALL, "cpu", 13)  # one sequence of 12 a call
    monkeypatch.setitem(protocol.PAIRS_PER_CALL, "cpu", 9)  # two lists of 4 a call
    np.testing.assert_allclose(runtime.embed(walks), whole, atol=1e-5)
    np.testing.assert_allclose(runtime.rerank(probe, candidates), distances, atol=1e-5)


def test_long_sequence(runtime, walks, eager):
    long = np.tile(walks[:1], (1, 50, 1, 1))  # 600 frames, the same set of silhouettes
    np.testing.assert_allclose(runtime.embed(long), eager[0](walks[:1]), atol=1e-5)


def test_empty_batches(runtime, bundle):
    assert runtime.embed(np.zeros((0, 5, 64, 64), np.uint8)).shape == (0, bundle.strips, bundle.dims)
    probe, candidates = pairs(bundle, 2, 0)
    assert runtime.rerank(probe, candidates).shape == (2, 0)


def test_strange_memory_layouts(runtime, walks, eager):
    expected = eager[0](np.ascontiguousarray(walks[:, ::-1]))
    np.testing.assert_allclose(runtime.embed(walks[:, ::-1]), expected, atol=1e-5)
    np.testing.assert_allclose(runtime.embed(np.asfortranarray(walks[:, ::-1])), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("silhouettes", "error"),
    [
        (np.zeros((5, 64, 64), np.uint8), SilhouetteShapeError),
        (np.zeros((1, 5, 64, 44), np.uint8), SilhouetteShapeError),
        (np.zeros((1, 5, 128, 128), np.uint8), SilhouetteShapeError),
        (np.zeros((1, 0, 64, 64), np.uint8), SilhouetteShapeError),
        (np.zeros((1, 5, 64, 64), np.float32), SilhouetteValueError),
        (np.zeros((1, 5, 64, 64), bool), SilhouetteValueError),
    ],
)
def test_bad_silhouettes(runtime, silhouettes, error, walks):
    with pytest.raises(error, match="silhouettes"):
        runtime.embed(silhouettes)
    assert np.isfinite(runtime.embed(walks)).all()  # the next good request is answered


def test_bad_pairs(runtime, bundle):
    probe, candidates = pairs(bundle, 2, 3)
    for p, c in (
        (probe[:1], candidates),
        (probe[:, 1:], candidates),
        (probe, candidates[..., 1:]),
        (probe, candidates[0]),
        (probe.astype(np.int32), candidates),
    ):
        with pytest.raises(InputError, match="wrong"):
            runtime.rerank(p, c)
    for value in (np.nan, np.inf):
        damaged = candidates.copy()
        damaged[1, 2, 0, 0] = value
        with pytest.raises(InputError, match="NaN or infinite"):
            runtime.rerank(probe, damaged)


def test_many_threads_get_their_own_answers(runtime, walks, bundle):
    expected = [runtime.embed(walk[None])[0] for walk in walks]
    probe, candidates = pairs(bundle, 4, 5)
    distances = runtime.rerank(probe, candidates)
    failures: list[str] = []

    def work(i):
        for _ in range(10):
            if not np.allclose(runtime.embed(walks[i : i + 1])[0], expected[i], atol=1e-5):
                failures.append(f"embed {i}")
            if not np.allclose(runtime.rerank(probe[i : i + 1], candidates[i : i + 1])[0], distances[i], atol=1e-5):
                failures.append(f"rerank {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []


@pytest.mark.parametrize("name", NAMES)
def test_closed_runtime_says_so(bundle, name, walks):
    opened = open_runtime(bundle, name)
    opened.close()
    opened.close()
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        opened.embed(walks)
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        opened.rerank(*pairs(bundle, 1, 1))


def test_auto_prefers_onnx_then_torch(bundle, bare, monkeypatch):
    assert open_runtime(bundle).name == "onnx"
    assert open_runtime(bare).name == "torch"
    monkeypatch.setattr(runtimes, "_installed", lambda package: package == "torch")
    assert open_runtime(bundle).name == "torchscript"
    monkeypatch.setattr(runtimes, "_installed", lambda package: False)
    with pytest.raises(RuntimeUnavailableError, match="pip install torch"):
        open_runtime(bundle)


def test_missing_artefact_and_missing_reranker(bare):
    for name in ("onnx", "torchscript"):
        with pytest.raises(RuntimeUnavailableError, match=f"--to {name}"):
            open_runtime(bare, name)
    with pytest.raises(RuntimeUnavailableError, match="no re-ranker"):
        open_runtime(bare, "torch").rerank(*pairs(bare, 1, 1))


def test_unknown_and_unavailable_runtimes(bundle):
    with pytest.raises(UnknownRuntimeError, match=r"auto, onnx, torchscript, torch, onnx-int8.*did you mean 'onnx'"):
        open_runtime(bundle, "onx")
    with pytest.raises(RuntimeUnavailableError, match="TensorRT"):
        open_runtime(bundle, "tensorrt")
    with pytest.raises(RuntimeUnavailableError, match=r"Recognizer\.connect"):
        open_runtime(bundle, "triton")


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_that_is_not_there_is_refused_not_replaced(bundle, name):
    index = torch.cuda.device_count()
    with pytest.raises(RuntimeUnavailableError, match="cuda"):
        open_runtime(bundle, name, device=f"cuda:{index + 100}")


def test_auto_with_a_gpu_that_nobody_has_is_refused(bundle):
    with pytest.raises(RuntimeUnavailableError):
        open_runtime(bundle, "auto", device="cuda:117")


def test_onnx_runtime_needs_no_torch(bundle):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from gaitsdk.bundle import Bundle; from gaitsdk.runtimes import open_runtime\n"
        "runtime = open_runtime(Bundle.load(sys.argv[1]))\n"
        "print(runtime.name, runtime.embed(np.zeros((2, 3, 64, 64), np.uint8)).shape)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"onnx (2, {bundle.strips}, {bundle.dims})", done.stderr


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cpu:0", "cuda:-1", None, 0])
def test_bad_devices(bundle, device):
    with pytest.raises(OptionError, match="device"):
        open_runtime(bundle, device=device)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**6])
def test_bad_threads(bundle, threads):
    with pytest.raises(OptionError, match="threads"):
        open_runtime(bundle, threads=threads)
    with pytest.raises(OptionError, match="reranker_threads"):
        open_runtime(bundle, reranker_threads=threads)


def test_threads_of_onnx_runtime(bundle, monkeypatch):
    asked = []

    class Options(onnxruntime.SessionOptions):
        @property
        def intra_op_num_threads(self):
            return 0

        @intra_op_num_threads.setter
        def intra_op_num_threads(self, value):
            asked.append(value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    from gaitsdk.runtimes.onnx_runtime import cores

    open_runtime(bundle, "onnx")
    open_runtime(bundle, "onnx", threads=3, reranker_threads=2)
    assert asked == [min(4, cores()), 1, 3, 2]


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
@pytest.mark.parametrize("network", ["backbone", "reranker"])
def test_tampered_artefact(bundle, tmp_path, name, network):
    copy = tmp_path / "copy.gait"
    shutil.copytree(bundle.path, copy)
    loaded = Bundle.load(copy)
    path = loaded.artefact(network, name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="changed after its export"):
        open_runtime(loaded, name)
    if name == "onnx":
        with pytest.raises(BundleError, match="changed after its export"):
            open_runtime(loaded, "auto")  # what is there but damaged is not skipped


@pytest.mark.parametrize("key", ["source_sha256", "fingerprint"])
def test_stale_artefact(bundle, tmp_path, key):
    """Listed and intact, but made from other weights."""
    copy = tmp_path / "copy.gait"
    shutil.copytree(bundle.path, copy)
    loaded = Bundle.load(copy)
    for name in ("onnx", "torchscript"):
        artefact = loaded.artefact("backbone", name)
        record = json.loads(artefact.with_name(f"{artefact.name}.export.json").read_text())
        moved = shutil.copy(artefact, tmp_path / artefact.name)
        loaded.add_artefact("backbone", name, moved, {**record, key: "0" * 64})
        with pytest.raises(BundleError, match=r"stale.*gaitsdk export"):
            open_runtime(Bundle.load(copy), name)


def test_onnx_of_another_model_with_a_forged_record_is_refused(bundle, tmp_path):
    """The fingerprint inside the file counts, too."""
    onnx = pytest.importorskip("onnx")
    copy = tmp_path / "copy.gait"
    shutil.copytree(bundle.path, copy)
    loaded = Bundle.load(copy)
    artefact = loaded.artefact("backbone", "onnx")
    record = json.loads(artefact.with_name(f"{artefact.name}.export.json").read_text())
    model = onnx.load(artefact)
    onnx.helper.set_model_props(model, {"gaitsdk.fingerprint": "0" * 64})
    forged = tmp_path / "forged.onnx"
    onnx.save(model, forged)
    record["sha256"] = hashlib.sha256(forged.read_bytes()).hexdigest()
    loaded.add_artefact("backbone", "onnx", forged, record)
    with pytest.raises(BundleError, match="stale"):
        open_runtime(loaded, "onnx")


def test_garbage_artefact(bundle, tmp_path):
    copy = tmp_path / "copy.gait"
    shutil.copytree(bundle.path, copy)
    loaded = Bundle.load(copy)
    for name in ("onnx", "torchscript"):
        artefact = loaded.artefact("backbone", name)
        record = json.loads(artefact.with_name(f"{artefact.name}.export.json").read_text())
        garbage = tmp_path / artefact.name
        garbage.write_bytes(b"no network" * 100)
        record["sha256"] = hashlib.sha256(garbage.read_bytes()).hexdigest()
        loaded.add_artefact("backbone", name, garbage, record)
        with pytest.raises(BundleError, match="cannot load"):
            open_runtime(loaded, name)


def test_network_that_answers_nan(bare, walks):
    opened = open_runtime(bare, "torch")
    opened._backbone = lambda batch: torch.full((len(batch), bare.strips, bare.dims), float("nan"))
    with pytest.raises(BundleError, match="NaN or infinite"):
        opened.embed(walks)


@pytest.mark.parametrize(("name", "package"), [("torch", "torch"), ("torchscript", "torch"), ("onnx", "onnxruntime")])
def test_missing_package_names_the_pip_line(bundle, name, package, monkeypatch):
    real = builtins.__import__

    def without(module, *rest, **more):
        if module.split(".")[0] == package:
            raise ImportError(f"no {package}")
        return real(module, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=f"pip install {package}"):
        open_runtime(bundle, name)


@pytest.mark.parametrize("kind", ["beside", "absolute", "..", "symlink", "hardlink"])
def test_an_artefact_with_weights_in_other_files_is_refused(bundle, tmp_path, monkeypatch, kind):
    onnx = pytest.importorskip("onnx")
    copy, outside = tmp_path / "copy.gait", tmp_path / "outside"
    shutil.copytree(bundle.path, copy)
    outside.mkdir()
    loaded = Bundle.load(copy)
    artefact = loaded.artefact("backbone", "onnx")
    record = json.loads(artefact.with_name(f"{artefact.name}.export.json").read_text())
    model = onnx.load(artefact)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    (outside / "weights.bin").write_bytes(tensor.raw_data)
    here, name = artefact.parent, "weights.bin"
    if kind == "beside":
        (here / name).write_bytes(tensor.raw_data)
    elif kind == "symlink":
        (here / name).symlink_to(outside / name)
    elif kind == "hardlink":
        os.link(outside / name, here / name)
    else:
        name = str(outside / name) if kind == "absolute" else f"../../outside/{name}"
    tensor.external_data.add(key="location", value=name)
    tensor.external_data.add(key="length", value=str(len(tensor.raw_data)))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    forged = tmp_path / "forged.onnx"
    forged.write_bytes(model.SerializeToString())
    record["sha256"] = hashlib.sha256(forged.read_bytes()).hexdigest()
    loaded.add_artefact("backbone", "onnx", forged, record)
    monkeypatch.chdir(here)  # ONNX Runtime looks in the current folder where it is told of none
    with pytest.raises(BundleError, match="cannot load the artefact"):
        open_runtime(loaded, "onnx")


def test_an_artefact_of_an_opset_that_nobody_knows_is_refused(bundle, tmp_path):
    onnx = pytest.importorskip("onnx")
    copy = tmp_path / "copy.gait"
    shutil.copytree(bundle.path, copy)
    loaded = Bundle.load(copy)
    artefact = loaded.artefact("backbone", "onnx")
    record = json.loads(artefact.with_name(f"{artefact.name}.export.json").read_text())
    model = onnx.load(artefact)
    model.opset_import[0].version = 9999
    forged = tmp_path / "forged.onnx"
    forged.write_bytes(model.SerializeToString())
    record["sha256"] = hashlib.sha256(forged.read_bytes()).hexdigest()
    loaded.add_artefact("backbone", "onnx", forged, record)
    with pytest.raises(BundleError, match=r"cannot load the artefact.*upgrade onnxruntime"):
        open_runtime(loaded, "onnx")


@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_near_and_leaves_the_reranker_alone(bundle, eager, walks, name):
    runtime = open_runtime(bundle, name, "cpu")
    exact, found = eager[0](walks), runtime.embed(walks)
    assert (runtime.name, found.dtype) == (name, np.float32)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03
    probe, candidates = pairs(bundle, 2, 3)
    np.testing.assert_allclose(runtime.rerank(probe, candidates), eager[1](probe, candidates), atol=1e-5)


class TestGraphs:
    """One CUDA graph per size, without CUDA: what is captured, padded, kept and let go."""

    @pytest.fixture
    def graphs(self):
        captured, eager = [], []

        def answer(batch):
            return batch.reshape(*batch.shape[:2], -1).max(axis=1)[:, :1, None].astype(np.float32)

        def capture(example):
            if example.shape[1] == 104:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            captured.append(example.shape[:2])
            return answer

        def plain(batch):
            eager.append(batch.shape[:2])
            return answer(batch)

        return lambda cyclic: (Graphs(capture, plain, cyclic), captured, eager)

    def batch(self, count, length):
        return np.arange(count * length, dtype=np.uint8).reshape(count, length, 1, 1).repeat(4, axis=2)

    def test_near_sizes_share_a_graph_and_padding_is_cut_off(self, graphs):
        run, captured, eager = graphs(cyclic=True)
        for count, length in ((3, 13), (4, 16), (3, 9), (1, 9)):
            batch = self.batch(count, length)
            np.testing.assert_array_equal(run(batch)[:, 0, 0], batch.max(axis=(1, 2, 3)))
        assert captured == [(4, 16), (1, 16)] and not eager

    def test_frames_are_not_repeated_where_that_changes_answers(self, graphs):
        run, captured, _ = graphs(cyclic=False)
        for length in (13, 16, 13):
            run(self.batch(3, length))
        assert captured == [(4, 13), (4, 16)]

    def test_what_cannot_be_captured_runs_eagerly(self, graphs, caplog):
        run, captured, eager = graphs(cyclic=True)
        for _ in range(2):
            assert len(run(self.batch(1, 100))) == 1
        assert not captured and eager == [(1, 104)] * 2
        assert [each.message.split(": ")[1] for each in caplog.records] == [
            "operation not permitted when stream is capturing"
        ]  # told once

    def test_large_calls_get_no_graph(self, graphs):
        run, captured, eager = graphs(cyclic=True)
        for count, length in ((65, 8), (1, 241)):
            assert len(run(self.batch(count, length))) == count
        assert not captured and eager == [(65, 8), (1, 241)]

    def test_the_size_not_used_for_longest_makes_room(self, graphs):
        run, captured, _ = graphs(cyclic=True)
        for length in (8, 16, 24, 32, 40, 48, 56, 64):
            run(self.batch(1, length))
        run(self.batch(1, 8))  # used again: 16 is the oldest now
        run(self.batch(1, 72))
        run(self.batch(1, 8))
        assert len(captured) == 9
        run(self.batch(1, 16))
        assert captured[-1] == (1, 16) and len(captured) == 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["torch", *HALF])
def test_cuda_graphs_give_the_eager_answers(bundle, eager, walks, name):
    runtime = open_runtime(bundle, name, "cuda")
    for count in (1, 3, 4):
        exact = eager[0](walks[:count])
        for _ in range(2):
            np.testing.assert_allclose(runtime.embed(walks[:count]), exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_provider_that_does_not_start_is_told(bundle, walks, monkeypatch, caplog):
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    if "CUDAExecutionProvider" in onnxruntime.capi.onnxruntime_pybind11_state.get_available_providers():
        pytest.skip("it does start here")
    runtime = open_runtime(bundle, "onnx", "auto")
    assert (runtime.device, runtime.providers) == ("cpu", ("CPUExecutionProvider",))
    assert "does not start here: the CPU is used" in caplog.text
    with pytest.raises(RuntimeUnavailableError, match="does not start here"):
        open_runtime(bundle, "onnx", "cuda")
