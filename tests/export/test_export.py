"""Exports of every registered architecture and of CarGait by every exporter: same answers, free axes, clean files."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gaitsdk.errors import BundleError, ExportError, OptionError
from gaitsdk_export import bundles, exporters, parity
from gaitsdk_export.cases import embedder_cases
from gaitsdk_export.cli import export as export_command
from gaitsdk_export.cli import table
from gaitsdk_export.parity import ParityError, Verdict, check

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from gaitsdk.bundle import Bundle  # noqa: E402
from gaitsdk.models import list_models  # noqa: E402
from gaitsdk.models.cargait import CarGait  # noqa: E402
from gaitsdk_export.bundles import export_bundle  # noqa: E402
from gaitsdk_export.eager import eager_network  # noqa: E402
from gaitsdk_export.to_onnx import assert_dynamic, onnx_network, to_onnx  # noqa: E402
from gaitsdk_export.to_torchscript import to_torchscript, torchscript_network  # noqa: E402
from gaitsdk_export.wrappers import EmbedderForExport, RerankerForExport, stable_order  # noqa: E402

EXPORTERS = {"onnx": (to_onnx, onnx_network), "torchscript": (to_torchscript, torchscript_network)}
RUN = CliRunner()


@pytest.fixture(scope="module", params=[*sorted(list_models()), "cargait"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name, tiny_wrapper):
    return tiny_wrapper(name)


@pytest.fixture(scope="module", params=sorted(EXPORTERS))
def exported(request, name, network, graph_of, quick_cases, tmp_path_factory):
    if request.param == "onnx":
        _wrapper, path, report, warned = graph_of(name)
        return path, report, onnx_network(path), warned
    path = tmp_path_factory.mktemp("export") / f"{network.role}.{request.param}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = to_torchscript(network, path, cases=quick_cases(network), metadata={"fingerprint": "f" * 64})
    return path, report, torchscript_network(path), [str(each.message) for each in caught]


def test_answers_are_the_eager_ones(exported):
    _path, report, _run, _warned = exported
    assert report.verdict is Verdict.OK
    assert report.max_abs <= 1e-4
    assert report.cosine >= 0.99999
    assert report.rank_agreement in (None, 1.0)


def test_exporting_warns_of_nothing(exported):
    assert exported[3] == []


def test_batch_mates_do_not_touch_each_other(network, exported, quick_cases):
    run = exported[2]
    case = [case for case in quick_cases(network) if case.inputs[0].shape[0] == 3][-1]
    together = run(*case.inputs)[0]
    for i in range(3):
        alone = run(*(each[i : i + 1] for each in case.inputs))[0]
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_another_network_fails_against_it(name, network, exported, tiny_wrapper, quick_cases):
    """The gate sees a network of the same shape with other weights."""
    run = exported[2]
    other = tiny_wrapper(name)
    with torch.no_grad():
        parameter = next(each for each in other.parameters() if each.dim() > 1)
        parameter.add_(0.1 * torch.randn_like(parameter))
    assert check(eager_network(other), run, quick_cases(network)).verdict is Verdict.FAIL


def test_onnx_file_is_self_contained_and_described(network, exported):
    path = exported[0]
    if path.suffix != ".onnx":
        pytest.skip("about ONNX")
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # no external data, no temporary file
    model = onnx.load(path)
    notes = {each.key: each.value for each in model.metadata_props}
    assert notes["gaitsdk.role"] == network.role
    assert notes["gaitsdk.fingerprint"] == "f" * 64
    assert notes["gaitsdk.torch"] == torch.__version__
    assert {key: int(notes[f"gaitsdk.{key}"]) for key in network.sizes} == network.sizes
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    assert_dynamic(network, path)
    assert b"site-packages" not in path.read_bytes()  # no stack traces of the exporting machine
    if network.role == "backbone":
        producer = {output: node for node in model.graph.node for output in node.output}
        readers = [node.op_type for node in model.graph.node if "silhouettes" in node.input]
        assert "Slice" not in readers  # uint8 is cast before it is cut
        assert "Cast" in readers
        assert "features" in producer


def test_torchscript_carries_its_description(network, exported):
    path = exported[0]
    if path.suffix != ".torchscript":
        pytest.skip("about TorchScript")
    extra = {"gaitsdk.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.load(str(path), _extra_files=extra)
    notes = json.loads(extra["gaitsdk.json"])
    assert notes["role"] == network.role
    assert notes["fingerprint"] == "f" * 64


class Frozen(torch.nn.Module):
    """Takes the number of frames as a Python number: the classical way to freeze an axis."""

    input_size, strips, dims = (64, 44), 2, 3

    def __init__(self, axis):
        super().__init__()
        self.axis = axis
        self.weight = torch.nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        pooled = x.amax(1) if self.axis == 0 else x.reshape(-1, 14, 64, 44).amax(1)  # 14: the example's frames
        pooled = pooled.reshape(2, 2, -1) if self.axis == 0 else pooled.reshape(pooled.shape[0], 2, -1)
        return pooled[..., :3] * self.weight


@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "frames"])
@pytest.mark.parametrize("kind", sorted(EXPORTERS))
def test_a_frozen_axis_is_refused_and_nothing_is_written(kind, axis, tmp_path):
    wrapper = EmbedderForExport(Frozen(axis).eval(), 64)
    with pytest.raises(ExportError):
        EXPORTERS[kind][0](wrapper, tmp_path / f"x.{kind}", cases=None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def static_graph(tmp_path_factory, tiny_wrapper):
    """A graph that was exported without free axes, as torch does by default."""
    path = tmp_path_factory.mktemp("static") / "static.onnx"
    wrapper = tiny_wrapper("gaitset")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapper, wrapper.example(), str(path), dynamo=True, opset_version=18, external_data=False, verbose=False,
            input_names=["silhouettes"], output_names=["features"],
        )  # fmt: skip
    return wrapper, path


def test_static_graph_is_found_by_its_dimensions(static_graph):
    wrapper, path = static_graph
    with pytest.raises(ExportError, match="axis 0: a free axis was frozen"):
        assert_dynamic(wrapper, path)


def test_graph_that_only_claims_free_axes_is_found_by_running(static_graph, quick_cases, tmp_path):
    wrapper, path = static_graph
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        for axis, symbol in ((0, "batch"), (1, "frames")):
            if value.name == "silhouettes" or axis == 0:
                value.type.tensor_type.shape.dim[axis].dim_param = symbol
    del model.graph.value_info[:]
    claimed = tmp_path / "claimed.onnx"
    onnx.save(model, claimed)
    assert_dynamic(wrapper, claimed)  # it claims them
    report = check(eager_network(wrapper), onnx_network(claimed), quick_cases(wrapper))
    assert report.verdict is Verdict.FAIL
    assert any("does not run" in reason for reason in report.reasons)


def test_failed_parity_leaves_nothing_and_keeps_what_was_there(tiny_wrapper, quick_cases, tmp_path, monkeypatch):
    path = tmp_path / "reranker.torchscript"
    path.write_bytes(b"an earlier, good artefact")
    wrapper = tiny_wrapper("cargait")
    monkeypatch.setattr(parity, "max_abs_difference", lambda a, b: 1.0)
    with pytest.raises(ParityError) as caught:
        to_torchscript(wrapper, path, cases=quick_cases(wrapper))
    assert caught.value.report.max_abs == 1.0
    assert path.read_bytes() == b"an earlier, good artefact"
    assert list(tmp_path.iterdir()) == [path]


def test_training_mode_and_wrong_size_are_refused(tiny_wrapper):
    model = tiny_wrapper("gaitset").model
    with pytest.raises(ExportError, match="another size"):
        EmbedderForExport(model, 128)
    with pytest.raises(ExportError, match="training mode"):
        EmbedderForExport(model.train(), 64)
    with pytest.raises(ExportError, match="training mode"):
        RerankerForExport(tiny_wrapper("cargait").reranker.train(), 4, 8)


@pytest.mark.parametrize("k", [1, 2, 7, 100])
def test_order_is_stable_at_every_length(k):
    random = np.random.default_rng(k)
    distances = random.integers(0, max(2, k // 3), (5, k)).astype(np.float32)
    order = stable_order(torch.from_numpy(distances)).numpy()
    assert order.dtype == np.int64
    np.testing.assert_array_equal(order, np.argsort(distances, axis=1, kind="stable"))


@pytest.fixture(scope="module")
def new_bundle(tiny_wrapper):
    """Writes a tiny GaitSet as a bundle."""

    def write(path, reranker=True):
        model = tiny_wrapper("gaitset").model
        torch.manual_seed(4)
        pair = CarGait(dims=model.dims, width=16, heads=4).eval()
        torch.nn.init.normal_(pair.output.weight, std=0.3)
        return Bundle.create(path, backbone=model, reranker=pair if reranker else None)

    return write


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory, new_bundle):
    return new_bundle(tmp_path_factory.mktemp("bundles") / "tiny.gait").path


@pytest.fixture(scope="module")
def results(bundle_path):
    lines: list[str] = []
    return export_bundle(bundle_path, progress=lines.append), lines


def test_bundle_gets_all_artefacts_with_records(bundle_path, results):
    found, lines = results
    assert [(each.network, each.format) for each in found] == [
        (network, kind) for network in ("backbone", "reranker") for kind in ("onnx", "torchscript")
    ]
    assert len(lines) == 4
    bundle = Bundle.load(bundle_path)  # every checksum holds
    for each in found:
        assert each.verdict is Verdict.OK
        assert each.path == bundle.artefact(each.network, each.format)
        assert each.size_bytes == each.path.stat().st_size
        assert each.latency_ms > 0
        record = json.loads(each.path.with_name(f"{each.path.name}.export.json").read_text())
        assert record["fingerprint"] == bundle.fingerprint
        assert record["sha256"] == bundle.manifest.files[f"artefacts/{each.path.name}"].sha256
        assert record["source_sha256"] == bundle.manifest.files[f"{each.network}.safetensors"].sha256
        assert record["parity"]["max_abs"] == each.max_abs <= 1e-4
        assert record["precision"] == "fp32"
        assert record["reproduce"] == f"gaitsdk export tiny.gait --to {each.format}"
        again = each.path.with_name(f"{each.path.name}.reproduce.sh")
        assert f"artefacts/{again.name}" in bundle.manifest.files
        assert again.stat().st_mode & 0o111 and f'export "$bundle" --to {each.format}\n' in again.read_text()
        assert ("opset" in record["versions"]) == (each.format == "onnx")
    assert not [each for each in bundle_path.parent.iterdir() if each.name.startswith(".")]


def test_exporting_keeps_the_fingerprint(bundle_path, results, new_bundle, tmp_path):
    fresh = new_bundle(tmp_path / "tiny.gait")
    assert fresh.fingerprint == Bundle.load(bundle_path).fingerprint


@pytest.fixture
def few_cases(monkeypatch):
    """Short walks, where a test is about something else than the comparison."""

    def few(size, channels=1, batches=(1, 2), lengths=(5, 9)):
        return embedder_cases(size, channels, batches, lengths)

    monkeypatch.setattr(exporters, "embedder_cases", few)


@pytest.mark.usefixtures("few_cases")
def test_a_failing_export_does_not_touch_the_bundle(new_bundle, tmp_path, monkeypatch):
    bundle = new_bundle(tmp_path / "a.gait", reranker=False)
    before = (bundle.path / "manifest.json").read_bytes()
    monkeypatch.setattr(parity, "min_cosine", lambda a, b: 0.5)
    (result,) = export_bundle(bundle.path, ["torchscript"])
    assert result.verdict is Verdict.FAIL
    assert result.path is None
    assert "cosine 0.5" in result.reason
    with pytest.raises(ExportError):
        result.raise_for_verdict()
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert sorted(each.name for each in bundle.path.iterdir()) == ["backbone.safetensors", "manifest.json"]
    outcome = RUN.invoke(command(), [str(bundle.path), "--to", "torchscript"])
    assert outcome.exit_code == 1
    assert "FAIL" in outcome.output


@pytest.mark.usefixtures("few_cases")
def test_export_replaces_a_damaged_artefact(new_bundle, tmp_path):
    bundle = new_bundle(tmp_path / "a.gait", reranker=False)
    (first,) = export_bundle(bundle.path, ["torchscript"])
    first.path.write_bytes(b"damaged")
    with pytest.raises(BundleError):
        Bundle.load(bundle.path)
    (second,) = export_bundle(bundle.path, ["torchscript"])
    assert second.verdict is Verdict.OK
    assert Bundle.load(bundle.path).artefact("backbone", "torchscript").stat().st_size == second.size_bytes
    (bundle.path / "backbone.safetensors").write_bytes(b"damaged")  # nothing can be exported from that
    with pytest.raises(BundleError):
        export_bundle(bundle.path, ["torchscript"])


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_fits_and_takes_any_path(width):
    rows = [
        bundles.ExportResult(network, kind, Path("x"), 123_456_789, "fp32", 1.2e-7, 0.9999999, 0.99, 1234.5, verdict,
                             None, 1.0)
        for network in ("backbone", "reranker")
        for kind, verdict in (("onnx", Verdict.OK), ("torchscript", Verdict.SKIPPED))
    ]  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    console.print(table("/data/[/x]/[bold]a.gait", rows))
    shown = console.file.getvalue()
    assert "/data/[/x]/[bold]a.gait" in shown and "…" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    if width == 80:
        for text in ("reranker.torchscript", "backbone.onnx", "123 ", "0.9999999", "1234.5", "SKIPPED"):
            assert text in shown


def test_unverified_export_says_so(new_bundle, tmp_path):
    bundle = new_bundle(tmp_path / "a.gait", reranker=False)
    (result,) = export_bundle(bundle.path, ["torchscript"], verify=False)
    assert result.verdict is Verdict.SKIPPED
    assert result.max_abs is None
    assert json.loads((bundle.path / "artefacts/backbone.torchscript.export.json").read_text())["verdict"] == "SKIPPED"


def test_unknown_format_and_missing_bundle(bundle_path, tmp_path):
    with pytest.raises(OptionError, match="onnx, torchscript"):
        export_bundle(bundle_path, ["onnx", "tflite"])
    with pytest.raises(OptionError):
        export_bundle(bundle_path, [])
    with pytest.raises(BundleError):
        export_bundle(tmp_path / "none.gait")


def command():
    app = typer.Typer()
    app.command()(export_command)
    return app


@pytest.mark.usefixtures("few_cases")
def test_command_line(bundle_path, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    outcome = RUN.invoke(command(), [str(bundle_path), "--to", "torchscript"])
    assert outcome.exit_code == 0, outcome.output
    for text in ("backbone.torchscript", "reranker.torchscript", "fp32", "OK", "exporting backbone to torchscript"):
        assert text in outcome.output
    outcome = RUN.invoke(command(), [str(bundle_path), "--to", "torchscript", "--no-verify", "--json"])
    assert outcome.exit_code == 0
    rows = json.loads(outcome.stdout)
    assert [row["verdict"] for row in rows] == ["SKIPPED", "SKIPPED"]
    assert rows[0]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [(["--to", "tflite"], 2, "onnx, torchscript"), (["--to", ""], 2, "unknown format"), ([], 1, "no bundle there")],
)
def test_command_line_refusals(arguments, code, text, tmp_path):
    outcome = RUN.invoke(command(), [str(tmp_path / "none.gait"), *arguments])
    assert outcome.exit_code == code
    assert text in " ".join(outcome.output.split())
