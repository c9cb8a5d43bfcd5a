"""A server with another re-ranker than CarGait gives the answers of this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gaitsdk import Bundle, Recognizer, synthetic
from gaitsdk.errors import OptionError
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk_export.serving_cli import check_networks, prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer

PEOPLE = [(f"p{i}", synthetic.sequence(i, "nm-01", frames=12)) for i in range(14)]
PROBES = [synthetic.sequence(i, "nm-03", frames=10 + i) for i in range(0, 20, 3)]


def answers(recognizer: Recognizer) -> list[list[tuple[int, int]]]:
    found = recognizer.identify_many(PROBES, top_k=14, threshold=1.0)
    return [[(each.entry_id, each.shortlist_rank) for each in result.candidates] for result in found]


@pytest.mark.parametrize("name", ["k-reciprocal", "classifier"])
def test_the_server_answers_as_this_process(
    installation: Installation, bundle_path: Path, tmp_path: Path, name: str
) -> None:
    plain = Bundle.load(bundle_path)
    bundle = Bundle.create(
        tmp_path / "m.gait",
        backbone=plain.build_backbone(),
        reranker=PairClassifier(plain.dims, plain.strips, 16) if name == "classifier" else None,
    )
    settings = Settings(
        bundle=str(bundle.path), gallery=str(tmp_path / "people.db"), runtime="torch", device="cpu", threads=1
    )
    check_networks(settings, name)
    prepare_gallery(settings)
    repository = render(bundle.path, tmp_path / "models", Options(reranker=name))
    with Recognizer.load(
        bundle, runtime="torch", device="cpu", threads=1, gallery=settings.gallery, reranker=name
    ) as local:
        for person, walk in PEOPLE:
            local.enroll(person, walk)
        with TritonServer(repository, settings, installation=installation) as server:
            with Recognizer.connect(server.grpc_url, timeout=60) as remote:
                assert remote.description == local.description and remote.description.reranker == name
                assert answers(remote) == answers(local)
                assert any(ranks[0][1] != 1 for ranks in answers(remote)), "nothing is re-ordered here"
                maps = local.embed([walk for _, walk in PEOPLE])
                probe = local.embed(PROBES[0])
                np.testing.assert_allclose(remote.rerank(probe, maps), local.rerank(probe, maps), atol=1e-5)
                if name != "classifier":
                    with pytest.raises(OptionError, match="no distance for a pair"):
                        remote.verify(PROBES[0], PROBES[1])
