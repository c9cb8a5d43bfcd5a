"""A model that reads three maps per frame, served by the real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import NoFramesError, ServerError, SilhouetteShapeError
from gaitsdk.silhouettes import stack_maps
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer


def maps(identity: int, kind: str = "nm-01", frames: int = 12) -> np.ndarray:
    """`[frames, 3, 64, 64]`; fainter phases of the walk stand in for limbs and joints."""
    silhouettes = synthetic.sequence(identity, kind, frames=frames)
    return stack_maps(
        limbs=np.roll(silhouettes, 3, axis=0) // 4, joints=np.roll(silhouettes, 7, axis=0) // 4, silhouettes=silhouettes
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    torch = pytest.importorskip("torch")
    pytest.importorskip("gaitsdk.models.skeletongaitpp")
    from gaitsdk.bundle import Bundle
    from gaitsdk.models import create
    from gaitsdk_export.bundles import export_bundle

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("maps")
    backbone = create("skeletongait++", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1), dims=16)
    Bundle.create(folder / "maps.gait", backbone=backbone.eval())
    for result in export_bundle(folder / "maps.gait", ("onnx",)):
        result.raise_for_verdict()
    return Settings(
        bundle=str(folder / "maps.gait"), gallery=str(folder / "people.db"), runtime="onnx", device="cpu", threads=1
    )


def test_the_server_answers_as_in_this_process(installation: Installation, settings: Settings, tmp_path: Path) -> None:
    repository = render(settings.bundle, tmp_path / "models", Options(reranker="none"))
    prepare_gallery(settings)
    with (
        TritonServer(repository, settings, installation=installation) as server,
        Recognizer.connect(server.grpc_url, timeout=60) as remote,
        Recognizer.load(
            settings.bundle, runtime="onnx", device="cpu", gallery=settings.gallery, reranker="none", threads=1
        ) as local,
    ):
        assert remote.description.frame == (3, 64, 64) == local.description.frame
        for identity in range(4):
            remote.enroll(f"person-{identity}", [maps(identity), maps(identity, "nm-02", 15)])
        probes = [maps(identity, "bg-01", frames) for identity, frames in ((2, 12), (0, 20), (3, 16))]
        for far, near in zip(remote.identify_many(probes), local.identify_many(probes), strict=True):
            assert [each.entry_id for each in far.candidates] == [each.entry_id for each in near.candidates]
            for one, other in zip(far.candidates, near.candidates, strict=True):
                assert one.distance == pytest.approx(other.distance, abs=1e-4)
        found = remote.identify(maps(1, "nm-02", 15), top_k=1)
        assert found.identity == "person-1" and found.candidates[0].distance == pytest.approx(0, abs=1e-4)
        picture = found.thumbnails()[0]
        assert picture is not None and picture.shape == (64, 64) and picture.max() == 255
        with pytest.raises(SilhouetteShapeError, match="stack_maps"):
            remote.identify(synthetic.sequence(1, frames=12))
        # What a client of another make might send: the server refuses it, and lives.
        for bad in (maps(1)[:, :2], maps(1)[..., 10:-10]):
            with pytest.raises(ServerError, match=r"Expected \[-1,3,64,64\]"):
                remote._engine.enroll("eve", [np.ascontiguousarray(bad)])
        with pytest.raises(NoFramesError):
            remote._engine.embed([np.zeros((12, 3, 64, 64), np.uint8)])
        assert remote.identify(maps(1)).identity == "person-1"
