"""Re-ranking ten candidates on one thread: the loop over pairs, the fused network, and with kept projections.

    python benchmarks/rerank.py [--seconds 10]

A CarGait of the paper's size (16 strips of 256, width 256, 8 heads) with random weights, one probe in a call, in turns:
what `gaitsdk benchmark` measures of a bundle, and beside it a network that reads every candidate's query, key and value
from a store instead of computing them. That one is not in the product: docs/export.md says why. Writes
benchmarks/results/rerank.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from gaitsdk.benchmark_cli import report, reranking, table
from gaitsdk.bundle import Bundle
from gaitsdk.models import create
from gaitsdk.models.cargait import CarGait
from gaitsdk_export.bundles import export_bundle
from gaitsdk_export.to_onnx import OPSET, onnx_network

RESULTS = Path(__file__).parent / "results" / "rerank.json"
STRIPS, DIMS = 16, 256


class KeptProjections(nn.Module):
    """CarGait on candidates whose projections come along: [B, K, s, 3, width]."""

    def __init__(self, reranker: CarGait) -> None:
        super().__init__()
        self.reranker = reranker

    def forward(self, probe: Tensor, candidates: Tensor, projections: Tensor) -> Tensor:
        net = self.reranker
        query_p, key_p, value_p = net._project(probe)
        batch, count, strips = candidates.shape[:3]
        heads, size = net.heads, net.width // net.heads
        flat = projections.reshape(batch, count * strips, 3, heads, size).permute(2, 0, 3, 1, 4)
        query_c, key_c, value_c = flat[0], flat[1], flat[2]
        scores = net._scores(query_p, key_c).reshape(batch, heads, strips, count, strips)
        values = value_c.reshape(batch, heads, count, strips, size)
        attended_p = torch.softmax(scores.transpose(2, 3), dim=-1) @ values
        attended_c = torch.softmax(net._scores(query_c, key_p), dim=-1) @ value_p
        change = attended_p - attended_c.reshape(batch, heads, count, strips, size)
        change = net.output(change.permute(0, 2, 3, 1, 4).reshape(batch, count, strips, net.width))
        return (probe.unsqueeze(1) - candidates + change).norm(dim=-1).mean(dim=-1)

    def projections(self, features: Tensor) -> Tensor:
        net = self.reranker
        return torch.stack([each(features) for each in (net.query, net.key, net.value)], dim=-2)


def with_kept_projections(reranker: CarGait, folder: Path) -> Callable[[Any, Any], Any]:
    """That network in ONNX Runtime; projections are computed once per list, outside of what is timed."""
    network, path = KeptProjections(reranker).eval(), str(folder / "kept.onnx")
    probe, candidates = torch.randn(2, STRIPS, DIMS), torch.randn(2, 5, STRIPS, DIMS)
    names = ("probe", "candidates", "projections")
    free = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("count")} for name in names[1:]}
    free["probe"] = {0: free["candidates"][0]}
    torch.onnx.export(
        network, (probe, candidates, network.projections(candidates)), path, dynamo=True, opset_version=OPSET,
        external_data=False, input_names=list(names), dynamic_shapes=free, verbose=False,
    )  # fmt: skip
    run, kept = onnx_network(path), {}

    def rescore(probe: np.ndarray, candidates: np.ndarray) -> Any:
        if "list" not in kept:
            with torch.inference_mode():
                kept["list"] = network.projections(torch.from_numpy(candidates)).numpy()
                exact = reranker(torch.from_numpy(probe), torch.from_numpy(candidates)).numpy()
            np.testing.assert_allclose(run(probe, candidates, kept["list"])[0], exact, atol=1e-4)
        return run(probe, candidates, kept["list"])[0]

    return rescore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to repeat")
    options = parser.parse_args()
    torch.manual_seed(0)
    reranker = CarGait(DIMS).eval().requires_grad_(False)
    nn.init.normal_(reranker.output.weight, std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gait"
        backbone = create("gaitbase", channels=(8, 8, 8, 8), strips=STRIPS, dims=DIMS).eval()
        Bundle.create(path, backbone=backbone, reranker=reranker)
        for made in export_bundle(path, ["onnx"], verify=False):
            made.raise_for_verdict()
        bundle = Bundle.load(path)
        kept = {"ONNX Runtime, projections kept": with_kept_projections(reranker, Path(folder))}
        rows = reranking(bundle, "cpu", options.seconds, kept)
        found = report(bundle, rows, 1)
        Console().print(table(rows))
    RESULTS.write_text(json.dumps({"command": "python benchmarks/rerank.py", **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
