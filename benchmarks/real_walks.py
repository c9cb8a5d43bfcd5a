"""Which re-ranker helps on walks of real people, with intervals, and why CarGait does or does not.

    python benchmarks/real_walks.py --data TREE [--apart 005,010] [--bundle NAME.gait] [--synthetic 30]

TREE is in CASIA-B's layout (id/type/view). The shipped backbone, which saw synthetic walkers only, makes the features;
its first K are re-ordered by every re-ranker there is, and where a method is made to see all probes and the whole
gallery, that is measured, too. `--apart` names people whom a further table leaves out as probes. Then what CarGait
does to the lists is counted, there and on synthetic walkers, in galleries of as many people and in one of all.
Everything goes to benchmarks/results/real_walks.json, and the tables of docs/results.md are written
(benchmarks/results_table.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import results_table
from numpy.typing import NDArray
from rerank_effect import effect
from rich.console import Console
from rich.progress import track
from shipped_bundle import Features, real_features, synthetic_features

from gaitsdk.bundle import Bundle
from gaitsdk.datasets import SequenceTree
from gaitsdk.rerankers import create
from gaitsdk.runtimes import NetworkRuntime, open_runtime
from gaitsdk_training.evaluation import hit_table, paired_bootstrap
from gaitsdk_training.evaluation.hits import CellMeans, HitTable, within
from gaitsdk_training.recipes.default import TEST_IDENTITIES

CONDITIONS = ("NM", "BG", "CL")
#: Re-rankers without weights, by the name in the tables.
PARAMETER_FREE = {
    "k-reciprocal": "k-reciprocal", "LBR": "lbr", "GCR": "gcr", "query expansion": "query-expansion",
}  # fmt: skip
SCOPES = ("list", "full")
RESAMPLES = 10_000
console = Console(soft_wrap=True)


def rankings(found: Features, runtime: NetworkRuntime, k: int) -> dict[str, dict[str, HitTable]]:
    """By scope and method, every cross-view ranking of CASIA-B's protocol; the rows are the same in all of them."""
    names = found.protocol()
    deep, energy = np.stack(found.deep), np.stack(found.gei)
    tables: dict[str, dict[str, HitTable]] = {"list": {}, "full": {}}

    def add(scope: str, method: str, features: NDArray[np.float32], reranker: Any = None) -> None:
        table = hit_table(features, *names, protocol="casiab", reranker=reranker, k=k)
        tables[scope][method] = table.where(table.cross_view)

    add("list", "GEI", energy)
    add("list", "initial", deep)
    for scope in SCOPES:
        for method, name in track(PARAMETER_FREE.items(), f"re-rankers, {scope}", console=console, transient=True):
            add(scope, method, deep, create(name, scope=scope))
    add("list", "CarGait", deep, runtime.rerank)
    return tables


def table_of(methods: dict[str, HitTable], initial: HitTable, apart: frozenset[str]) -> dict[str, Any]:
    """Rank-1 by condition as the protocol has it, and the gain over the initial ranking, each with its interval."""
    rows: dict[str, Any] = {}
    kept = ~np.isin(initial.identity, sorted(apart))
    base = initial.where(kept)
    for method, table in methods.items():
        own = table.where(kept)
        figures = CellMeans(own, CONDITIONS).figures("rank1", within(own.rank_after, 1))
        row: dict[str, Any] = {}
        for name in (*CONDITIONS, "mean"):
            chosen = np.ones(len(own), bool) if name == "mean" else own.condition == name
            hits, before, people = own.after[chosen], base.before[chosen], own.identity[chosen]
            low, _, high = paired_bootstrap(np.zeros(len(hits)), hits, people, n=RESAMPLES)
            down, gain, up = paired_bootstrap(before, hits, people, n=RESAMPLES)
            row[name] = {
                "rank1": round(figures["rank1" if name == "mean" else f"rank1/{name}"], 2),
                "interval": [round(low, 1), round(high, 1)],
                "gain": round(gain, 2),
                "gain_interval": [round(down, 1), round(up, 1)],
            }
        rows[method] = row
    return rows


def on_synthetic(runtime: NetworkRuntime, network: Any, k: int, people: int, size: int) -> dict[str, Any]:
    """The effect on unseen synthetic people, in galleries of so many as the real ones and in one gallery of all."""
    walkers = synthetic_features(runtime, list(TEST_IDENTITIES)[:people])
    return {
        f"synthetic walks, {size} people": effect(groups(walkers, size), network, k),
        f"synthetic walks, {people} people": effect([walkers], network, k),
    }


def groups(found: Features, size: int) -> list[Features]:
    """The same people in galleries of so many, so that lists of K are as long a part of them as with the real ones."""
    people = sorted(set(found.labels))
    parts = []
    for start in range(0, len(people) - size + 1, size):
        chosen = set(people[start : start + size])
        part = Features()
        for index, label in enumerate(found.labels):
            if label in chosen:
                part.deep.append(found.deep[index])
                part.labels.append(label)
                part.types.append(found.types[index])
                part.views.append(found.views[index])
        parts.append(part)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a CASIA-B-style tree of real walks")
    parser.add_argument("--apart", default="", help="identities, comma-separated, without whom a second table is made")
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--synthetic", type=int, default=30, help="unseen synthetic people to compare (%(default)s)")
    parser.add_argument("--out", type=Path, default=results_table.REAL, help="figures to another file, and no page")
    options = parser.parse_args()
    started = time.perf_counter()
    bundle = Bundle.load(options.bundle)
    runtime = open_runtime(bundle)
    k = bundle.manifest.k or 10
    real = real_features(runtime, SequenceTree(options.data))
    apart = frozenset(each for each in options.apart.split(",") if each)
    tables = rankings(real, runtime, k)
    initial = tables["list"]["initial"]
    report: dict[str, Any] = {
        "command": "python benchmarks/real_walks.py --data TREE" + (f" --apart {options.apart}" if apart else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "runtime": f"{runtime.name} on {runtime.device}",
        "model": bundle.fingerprint,
        "k": k,
        "identities": len(set(real.labels)),
        "sequences": len(real.labels),
        "rankings": len(initial),
        "intervals": f"95 %, {RESAMPLES} bootstrap resamples of people, all cross-view rankings pooled",
        "tables": {scope: table_of(methods, initial, frozenset()) for scope, methods in tables.items()},
    }
    if apart:
        report["apart"] = sorted(apart)
        report["tables_without"] = {scope: table_of(methods, initial, apart) for scope, methods in tables.items()}
    network = bundle.build_reranker()
    report["effect"] = {results_table.REAL_WALKS: effect([real], network, k)}
    if options.synthetic:
        report["effect"] |= on_synthetic(runtime, network, k, options.synthetic, report["identities"])
    report["minutes"] = round((time.perf_counter() - started) / 60.0, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(results_table.real_tables(report), markup=False, highlight=False)
    if options.out == results_table.REAL:
        results_table.main()


if __name__ == "__main__":
    main()
