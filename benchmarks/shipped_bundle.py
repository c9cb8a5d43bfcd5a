"""How good the shipped bundle is: on unseen synthetic identities, on real motion-captured walks, and how fast.

    python benchmarks/shipped_bundle.py [--identities 100] [--real FOLDER] [--bundle NAME.gait]

Prints a table. With `--real` it also writes benchmarks/results/shipped_bundle.json (without, the committed figures for
real walks would be lost); `--out` writes elsewhere. `--real` is a CASIA-B-style tree (id/type/view); the
committed figures are for motion-captured walks of ten people (CMU Graphics Lab) rendered from 11 views.

Figures of another bundle that stood there before stay in the file, for comparison: a bundle that ships has no Rank-1
below its predecessor's. Where one is below, the script ends with 1 and leaves the file as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.datasets import SequenceTree
from gaitsdk.pipeline import embed_many
from gaitsdk.runtimes import NetworkRuntime, open_runtime
from gaitsdk_training.evaluation import evaluate, gei, hit_table, paired_bootstrap
from gaitsdk_training.recipes.default import TEST_IDENTITIES

RESULTS = Path(__file__).parent / "results" / "shipped_bundle.json"
CONDITIONS = ("NM", "BG", "CL")
FRAMES = 30
DATA = ("synthetic", "real")
#: What tells one bundle from another.
WEIGHTS = ("model", "reranker_sha256")
#: Points by which a figure may differ between machines: sums in another order swap neighbours now and then.
ROUNDING = 0.05
console = Console()


class Features:
    """Feature maps and GEIs of a data set, with the labels that the protocol needs."""

    def __init__(self) -> None:
        self.deep: list[np.ndarray] = []
        self.gei: list[np.ndarray] = []
        self.labels: list[str] = []
        self.types: list[str] = []
        self.views: list[str] = []

    def add(self, runtime: NetworkRuntime, silhouettes: list[np.ndarray], names: list[tuple[str, str, str]]) -> None:
        self.deep.extend(embed_many(runtime.embed, silhouettes))
        self.gei.extend(gei(each) for each in silhouettes)
        for label, kind, view in names:
            self.labels.append(label)
            self.types.append(kind)
            self.views.append(view)

    def protocol(self) -> tuple[list[str], list[str], list[str]]:
        return self.labels, self.types, self.views


def synthetic_features(runtime: NetworkRuntime, identities: list[int]) -> Features:
    found = Features()
    for identity in track(identities, "unseen synthetic identities", console=console):
        sequences = list(synthetic.dataset([identity], frames=FRAMES))
        found.add(
            runtime,
            [each.silhouettes for each in sequences],
            [(each.identity, each.type, each.view) for each in sequences],
        )
    return found


def real_features(runtime: NetworkRuntime, tree: SequenceTree) -> Features:
    found = Features()
    refs = list(tree)
    for start in track(range(0, len(refs), 32), "real walks", console=console):
        chunk = refs[start : start + 32]
        found.add(runtime, [ref.load() for ref in chunk], [(ref.identity, ref.type, ref.view) for ref in chunk])
    return found


def figures(found: Features, runtime: NetworkRuntime) -> dict[str, Any]:
    """CASIA-B protocol for GEI, the backbone alone and CarGait; and what CarGait changes, with its interval."""
    names = found.protocol()
    deep, baseline = np.stack(found.deep), np.stack(found.gei)
    results = {
        "GEI": evaluate(baseline, *names, protocol="casiab"),
        "initial": evaluate(deep, *names, protocol="casiab"),
        "cargait": evaluate(deep, *names, protocol="casiab", reranker=runtime.rerank, k=10),
    }
    keys = ("rank1", *(f"rank1/{c}" for c in CONDITIONS), *(f"rank1_same_view/{c}" for c in CONDITIONS))
    table = {method: {key: round(values[key], 2) for key in keys} for method, values in results.items()}
    # The protocol leaves identical views out, and does not re-rank them.
    table["cargait"] = {key: value for key, value in table["cargait"].items() if "same_view" not in key}
    hits = hit_table(deep, *names, protocol="casiab", reranker=runtime.rerank, k=10)
    cross = hits.where(hits.cross_view)
    low, mean, high = paired_bootstrap(cross.before, cross.after, cross.identity, n=1000, seed=0)
    return {
        "sequences": len(found.labels),
        "identities": len(set(found.labels)),
        "probes": results["initial"]["probes"],
        "rank1_percent": table,
        "cargait_minus_initial_points": {
            "mean": round(mean, 2),
            "interval_95": [round(low, 2), round(high, 2)],
            "how": "1000 bootstrap resamples of identities, all cross-view comparisons pooled",
        },
    }


def embedding_time(bundle: Bundle) -> dict[str, float]:
    """Median milliseconds of one 30-frame sequence on one thread."""
    sequence = synthetic.sequence(TEST_IDENTITIES[0], frames=FRAMES)[None]
    times = {}
    for name in ("onnx", "torch"):
        runtime = open_runtime(bundle, runtime=name, device="cpu", threads=1)
        seconds = []
        for _ in range(25):
            started = time.perf_counter()
            runtime.embed(sequence)
            seconds.append(time.perf_counter() - started)
        times[name] = round(statistics.median(seconds[5:]) * 1e3, 2)
        runtime.close()
    return times


def show(title: str, result: dict[str, Any]) -> None:
    table = Table(title=f"{title}: {result['identities']} identities, {result['probes']} probes (CASIA-B protocol, %)")
    table.add_column("method")
    for column in (*CONDITIONS, "mean", *(f"{condition} same" for condition in CONDITIONS)):
        table.add_column(column, justify="right")
    for method, values in result["rank1_percent"].items():
        cells = [values[f"rank1/{c}"] for c in CONDITIONS] + [values["rank1"]]
        same = [values.get(f"rank1_same_view/{c}") for c in CONDITIONS]
        table.add_row(method, *(f"{cell:.2f}" for cell in cells), *("" if s is None else f"{s:.2f}" for s in same))
    console.print(table)
    gain = result["cargait_minus_initial_points"]
    low, high = gain["interval_95"]
    console.print(f"CarGait - initial: {gain['mean']} points, 95 % interval {low} to {high} ({gain['how']})")


def compare(report: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """`report` with what the bundle before it reached: `before`, or its predecessor where the bundle is the same."""
    same = all(report[name] == before.get(name) for name in WEIGHTS)
    previous = before.get("previous") if same else {name: before.get(name) for name in (*WEIGHTS, *DATA)}
    return report if previous is None else {**report, "previous": previous}


def fallen(report: dict[str, Any]) -> list[str]:
    """The protocol's Rank-1 figures, of every condition, that are below the previous bundle's, as lines of text. (Of
    identical views, which the protocol leaves out, the table tells too; they are not compared.)"""
    lines = []
    for data in DATA:
        now, before = ((each.get(data) or {}).get("rank1_percent", {}) for each in (report, report.get("previous", {})))
        for method in ("initial", "cargait"):
            for key, value in before.get(method, {}).items():
                if "same_view" not in key and now[method][key] < value - ROUNDING:
                    lines.append(f"{data}, {method}, {key}: {now[method][key]} after {value}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=len(TEST_IDENTITIES))
    parser.add_argument("--real", type=Path, help="a CASIA-B-style tree of real walks")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--out", type=Path, help="where to write the figures")
    options = parser.parse_args()
    real = None if options.real is None else SequenceTree(options.real)  # a wrong folder is told before the long part
    bundle = Bundle.load(options.bundle)
    runtime = open_runtime(bundle)
    report: dict[str, Any] = {
        "command": "python benchmarks/shipped_bundle.py" + ("" if real is None else " --real FOLDER"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}",
        "runtime": f"{runtime.name} on {runtime.device}",
        "model": bundle.fingerprint,
        "reranker_sha256": bundle.manifest.files["reranker.safetensors"].sha256,
        "embedding_ms_30_frames_1_thread": embedding_time(bundle),
    }
    console.print(f"embedding 30 frames, one thread, median ms: {report['embedding_ms_30_frames_1_thread']}")
    found = synthetic_features(runtime, list(TEST_IDENTITIES)[: options.identities])
    report["synthetic"] = figures(found, runtime)
    show("unseen synthetic identities", report["synthetic"])
    if real is not None:
        report["real"] = figures(real_features(runtime, real), runtime)
        show("real walks", report["real"])
    out = options.out or (RESULTS if real is not None else None)
    if out is not None:
        if out.exists():
            report = compare(report, json.loads(out.read_text()))
        if lines := fallen(report):
            raise SystemExit("worse than the bundle before:\n" + "\n".join(lines))
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
