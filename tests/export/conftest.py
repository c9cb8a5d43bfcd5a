"""Small networks and their ONNX graphs, exported once for all tests of the exporters."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Graph(NamedTuple):
    """An exported network: its wrapper, the file, the parity report, and what Python warned of on the way."""

    wrapper: Any
    path: Path
    report: Any
    warned: list[str]


@pytest.fixture(scope="session")
def backbone_wrapper() -> Callable[[str, str], Any]:
    """By name and tag: a network as a graph, in eval mode, the same every time. Its batch norms do something, as those
    of trained networks do: at first an all-zero sequence leaves less of itself than fp16 can hold."""
    torch = pytest.importorskip("torch")
    from gaitsdk.models import create
    from gaitsdk_export.wrappers import EmbedderForExport

    def make(name: str, tag: str) -> Any:
        torch.manual_seed(3)
        model: Any = create(name, tag=tag)
        for key, value in model.state_dict().items():
            if key.endswith("running_mean"):
                value.uniform_(-0.2, 0.2)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
        return EmbedderForExport(model.eval(), model.input_size[0], model.input_channels)

    return make


@pytest.fixture(scope="session")
def tiny_wrapper(backbone_wrapper: Callable[[str, str], Any]) -> Callable[[str], Any]:
    """By name of a registered backbone or "cargait": a small network as a graph."""
    torch = pytest.importorskip("torch")
    from gaitsdk.models.cargait import CarGait
    from gaitsdk_export.wrappers import RerankerForExport

    def make(name: str) -> Any:
        if name != "cargait":
            return backbone_wrapper(name, "tiny")
        torch.manual_seed(3)
        reranker = CarGait(dims=8, width=16, heads=4)
        torch.nn.init.normal_(reranker.output.weight, std=0.3)
        return RerankerForExport(reranker.eval(), 4, 8)

    return make


@pytest.fixture(scope="session")
def quick_cases() -> Callable[[Any], Any]:
    """Cases of three short lengths, at every batch."""
    from gaitsdk_export.cases import embedder_cases, reranker_cases

    def cases(wrapper: Any) -> Any:
        if wrapper.role == "reranker":
            return reranker_cases(wrapper.strips, wrapper.dims)
        return embedder_cases(wrapper.size, wrapper.channels, lengths=(5, 9, 16))

    return cases


@pytest.fixture(scope="session")
def graph_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_wrapper: Callable[[str], Any], quick_cases: Callable[[Any], Any]
) -> Callable[[str], Graph]:
    """By name: the ONNX export of `tiny_wrapper(name)`."""
    pytest.importorskip("onnxscript")
    from gaitsdk_export.to_onnx import to_onnx

    @functools.cache
    def export(name: str) -> Graph:
        wrapper = tiny_wrapper(name)
        path = tmp_path_factory.mktemp(name) / f"{wrapper.role}.onnx"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = to_onnx(wrapper, path, cases=quick_cases(wrapper), metadata={"fingerprint": "f" * 64})
        return Graph(wrapper, path, report, [str(each.message) for each in caught])

    return export


@pytest.fixture(scope="session")
def bare_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with random weights and without artefacts, which take long to make; copy it before changing it."""
    pytest.importorskip("torch")
    from gaitsdk.bundle import Bundle
    from gaitsdk.models import create
    from gaitsdk.models.cargait import CarGait

    path = tmp_path_factory.mktemp("bundle") / "bare.gait"
    backbone = create("gaitbase", channels=(8, 8, 16, 16), stem_stride=2, strides=(1, 2, 1, 1), dims=32, strips=16)
    return Bundle.create(path, backbone=backbone, reranker=CarGait(dims=32, width=32, heads=4)).path


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT for RTX, which builds engines without a GPU."""
    from gaitsdk.errors import MissingDependencyError
    from gaitsdk.runtimes.tensorrt_runtime import import_tensorrt

    try:
        return import_tensorrt("tensorrt-rtx")
    except MissingDependencyError as error:
        pytest.skip(str(error))
