"""Open set with the shipped bundle: thresholds set on some synthetic walkers, what they do to others.

    python benchmarks/open_set.py [--work FOLDER] [--people 360]

Two crowds whom nobody trained on: one walk in three views may be enrolled, two others ask. Thresholds for FPIR 1 % are
set on the first crowd, for galleries of 50, 100 and 200, and measured on the second; the report of the two stages
halves both together. FOLDER keeps walkers and features. Prints tables and writes benchmarks/results/open_set.json; some
ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gaitsdk import synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.calibration import choose
from gaitsdk.runtimes import NetworkRuntime, open_runtime
from gaitsdk_training.evaluation.calibrate import Calibrated, Goal, calibrate
from gaitsdk_training.evaluation.galleries import Plan, Pool, draws, list_reranker, search
from gaitsdk_training.evaluation.open_set import Searches, fnir_at, fpir_at
from gaitsdk_training.evaluation.sequences import embed_sequences, open_sequences
from gaitsdk_training.evaluation.two_stage import TwoStageReport, two_stage_report

RESULTS = Path(__file__).parent / "results" / "open_set.json"
TYPES, VIEWS, FRAMES = ("nm-01", "nm-05", "bg-01"), ("036", "090", "144"), 20
CROWDS = {"strangers": 5001, "others": 6001}  # the first person of each; the recipe of the bundle uses none of them
CALIBRATED, MEASURED = (50, 100, 200), (50, 75, 100, 200, 300)
FPIR, TWO_STAGE_SIZE = 0.01, 100
PLAN, TWO_STAGE_PLAN = Plan(galleries=3), Plan(galleries=2, probes=4)
console = Console()


def columns(
    work: Path, name: str, people: int, bundle: Bundle, networks: NetworkRuntime, progress: Progress
) -> tuple[Any, ...]:
    """Features, labels, types and views of a crowd, made where it is missing."""
    root = work / name
    if not root.exists():
        task = progress.add_task(f"walkers: {name}", total=None)
        synthetic.write_casiab(
            root,
            range(CROWDS[name], CROWDS[name] + people),
            TYPES,
            VIEWS,
            FRAMES,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    task = progress.add_task(f"embedding: {name}", total=None)
    sequences = open_sequences(root, bundle.size)
    features, kept, skipped, _ = embed_sequences(
        sequences,
        bundle,
        networks,
        work / "features",
        lambda done, total: progress.update(task, completed=done, total=total),
    )
    if skipped:
        raise SystemExit(f"unusable walkers: {skipped[:3]}")
    used = sequences.take(kept)
    return features, used.labels, used.types, used.views


def kept_promises(found: list[Calibrated], others: tuple[Any, ...], reranker: Any, k: int) -> list[dict[str, Any]]:
    """FPIR and FNIR on people that no threshold was set on, with the threshold that the product would take."""
    pool, rescorer = Pool.check(*others), list_reranker(reranker)
    stored = [each.entry for each in found]
    rows: list[dict[str, Any]] = []
    for size in MEASURED:
        name = stored[0].reranker
        chosen = choose(stored, task="identify", reranker=name, k=k, gallery_size=size)
        if chosen is None:
            raise SystemExit("nothing is calibrated")
        searches = Searches.join([search(pool, draw, rescorer, k) for draw in draws(pool, size, PLAN)])
        fpir, fnir = fpir_at(searches, chosen.threshold, ""), fnir_at(searches, chosen.threshold, "")
        rows.append(
            {
                "gallery_size": size,
                "calibrated_for": chosen.gallery_size,
                "threshold": chosen.threshold,
                "fpir": fpir.to_dict(),
                "fnir": fnir.to_dict(),
                "text": [str(fpir), str(fnir)],
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("gallery", "threshold of", "FPIR", "FNIR", title=title)
    for row in rows:
        table.add_row(str(row["gallery_size"]), str(row["calibrated_for"]), *row["text"])
    console.print(table)


def show_stages(report: TwoStageReport) -> None:
    table = Table(*report.columns, title="two stages")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    for note in report.notes():
        console.print(note, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/open-set"), help="keeps walkers and features")
    parser.add_argument("--people", type=int, default=360, help="of each crowd")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    networks = open_runtime(bundle)
    report: dict[str, Any] = {
        "command": "python benchmarks/open_set.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "runtime": f"{networks.name} on {networks.device}",
        "model": bundle.fingerprint,
        "people": options.people,
        "types, views, frames": [TYPES, VIEWS, FRAMES],
        "fpir": FPIR,
    }
    k = bundle.manifest.k
    with Progress(console=console) as progress:
        crowds = {name: columns(options.work, name, options.people, bundle, networks, progress) for name in CROWDS}
        task = progress.add_task("thresholds", total=None)
        for name, reranker in (("cargait", networks.rerank), ("none", None)):
            goal = Goal(fpir=FPIR, sizes=CALIBRATED, plan=PLAN)
            found = calibrate(*crowds["strangers"], goal, reranker=reranker, name=name, k=k)
            rows = kept_promises(found, crowds["others"], reranker, 0 if reranker is None else k)
            report[name] = {"calibrated": [each.to_dict() for each in found], "on_others": rows}
            show(f"{name}: thresholds for FPIR {100 * FPIR:g} %, on other people", rows)
        progress.update(task, total=1, completed=1)
        task = progress.add_task("two stages", total=None)
        both = [np.concatenate([crowds[name][column] for name in CROWDS]) for column in range(4)]
        stages = two_stage_report(
            *both,
            reranker=networks.rerank,
            k=k,
            gallery_size=TWO_STAGE_SIZE,
            plan=TWO_STAGE_PLAN,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    report["two_stage"] = stages.to_dict()
    for stage in (report["two_stage"]["initial"], *report["two_stage"]["reranked"]):
        del stage["det"], stage["cmc"]  # hundreds of points each
    show_stages(stages)
    networks.close()
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
