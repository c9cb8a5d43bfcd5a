"""`gaitsdk identify --root`: enrol part of a CASIA-B-style tree, identify the rest, and count who was right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from gaitsdk.datasets import SequenceRef, SequenceTree
from gaitsdk.errors import DatasetError, SilhouetteError
from gaitsdk.pictures import ranked_lists
from gaitsdk.recognizer import Recognizer
from gaitsdk.silhouettes import Silhouettes, prepare

BATCH = 32  # sequences per call, so that memory stays bounded on any tree
PICTURED = 6


def identify_tree(
    recognizer: Recognizer,
    root: Path,
    *,
    enroll_types: list[str],
    views: list[str] | None = None,
    top_k: int = 10,
    save: Path | None = None,
    progress: Console | None = None,
) -> dict[str, Any]:
    """Enrols every sequence of `enroll_types`, identifies all others.

    All views stand in the gallery together, the probe's own among them, as in use: for the protocol that excludes
    identical views there is `gaitsdk evaluate`.

    Args:
        save: where to draw the ranked lists of the first probes whose order the re-ranker changed.
        progress: where to draw progress bars.

    Returns:
        Per condition (the type without its number) `probes`, `rank1_initial`, `rank1` in percent, what was `skipped`
        and why, and the runtime, device and re-ranker really used.
    """
    refs = list(SequenceTree(root, views=views))
    enrolled = [ref for ref in refs if ref.type in enroll_types]
    probes = [ref for ref in refs if ref.type not in enroll_types]
    if not enrolled or not probes:
        raise DatasetError(
            "nothing to enrol" if not enrolled else "nothing to identify",
            where=str(root),
            got=f"types {', '.join(sorted({ref.type for ref in refs}))}",
            expected=f"some of {', '.join(enroll_types)} to enrol and other types as probes",
            fix="choose --enroll-types",
        )
    skipped: list[dict[str, str]] = []
    for ref in _track(enrolled, "enrolling", progress):
        for _, silhouettes in _usable([ref], recognizer.description.size, skipped):
            recognizer.enroll(ref.identity, silhouettes)
    listed = max(top_k, recognizer.description.k)  # so that the first of the shortlist is among them
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    pictured: list[tuple[Any, str]] = []
    chunks = [probes[start : start + BATCH] for start in range(0, len(probes), BATCH)]
    for chunk in _track(chunks, "identifying", progress):
        usable = list(_usable(chunk, recognizer.description.size, skipped))
        if not usable:
            continue
        results = recognizer.identify_many([silhouettes for _, silhouettes in usable], listed)
        for (ref, _), result in zip(usable, results, strict=True):
            first = result.initial
            tally = counts[ref.type.split("-")[0]]
            tally[0] += 1
            tally[1] += first.identity == ref.identity
            tally[2] += result.identity == ref.identity
            if len(pictured) < PICTURED and first.entry_id != result.candidates[0].entry_id:
                pictured.append((result, ref.identity))
    if save is not None and pictured:
        ranked_lists([result for result, _ in pictured], [truth for _, truth in pictured]).save(save)
    about = recognizer.description
    return {
        "root": str(root),
        "enrolled": len(enrolled),
        "identities": len({ref.identity for ref in enrolled}),
        "conditions": {
            name: {
                "probes": total,
                "rank1_initial": round(100 * before / total, 2),
                "rank1": round(100 * after / total, 2),
            }
            for name, (total, before, after) in sorted(counts.items())
        },
        "skipped": skipped,
        "runtime": about.runtime,
        "device": about.device,
        "reranker": about.reranker,
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    caption = f"{report['enrolled']} sequences of {report['identities']} identities enrolled, all views together"
    table = Table(title=report["root"], caption=f"{caption}; {report['runtime']} on {report['device']}")
    for column in ("condition", "probes", "Rank-1 initial %", f"Rank-1 {report['reranker']} %"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, figures in report["conditions"].items():
        table.add_row(name, str(figures["probes"]), f"{figures['rank1_initial']:.1f}", f"{figures['rank1']:.1f}")
    console.print(table)
    for each in report["skipped"]:
        console.print(f"skipped {each['sequence']}: {each['reason']}", highlight=False, markup=False)


def _usable(
    refs: list[SequenceRef], size: int, skipped: list[dict[str, str]]
) -> Iterator[tuple[SequenceRef, Silhouettes]]:
    for ref in refs:
        try:
            yield ref, prepare(ref.load(), size).silhouettes
        except SilhouetteError as error:
            skipped.append({"sequence": _name(ref), "reason": str(error)})


def _name(ref: SequenceRef) -> str:
    return f"{ref.identity}/{ref.type}/{ref.view}"


def _track(items: list[Any], what: str, console: Console | None) -> Any:
    return items if console is None else track(items, what, console=console)
