"""`gaitsdk identify --root`: enrol part of a CASIA-B-style tree, identify the rest, and count who was right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from gaitsdk.datasets import SequenceRef, SequenceTree
from gaitsdk.errors import DatasetError, OptionError, SilhouetteError
from gaitsdk.recognizer import TOP_K, Recognizer
from gaitsdk.silhouettes import Silhouettes

if TYPE_CHECKING:
    from gaitsdk.engine import Description
    from gaitsdk.results import Identification

#: Enrolled where nothing else is asked for, as far as the tree has them: CASIA-B's gallery.
GALLERY_TYPES = ("nm-01", "nm-02", "nm-03", "nm-04")
BATCH = 32  # sequences per call, so that memory stays bounded on any tree
PICTURED = 6


@dataclass
class _Tally:
    """Probes of one condition: how many, and how many were right before and after re-ranking."""

    probes: int = 0
    before: int = 0
    after: int = 0

    def to_dict(self) -> dict[str, Any]:
        share = 100 / max(1, self.probes)
        return {
            "probes": self.probes,
            "rank1_initial": round(share * self.before, 2),
            "rank1": round(share * self.after, 2),
        }


@dataclass
class _Pictures:
    """Ranked lists worth drawing: those whose first place changed hands, filled up with the first ones."""

    changed: list[tuple[Identification, str]] = field(default_factory=list)
    others: list[tuple[Identification, str]] = field(default_factory=list)

    def see(self, result: Identification, truth: str) -> None:
        moved = result.initial.entry_id != result.candidates[0].entry_id
        kept = self.changed if moved else self.others
        if len(kept) < PICTURED:
            kept.append((result, truth))

    def save(self, path: Path) -> None:
        from gaitsdk.pictures import ranked_lists, save_picture

        chosen = (self.changed + self.others)[:PICTURED]
        save_picture(ranked_lists([result for result, _ in chosen], [truth for _, truth in chosen]), path)


def identify_tree(
    recognizer: Recognizer,
    root: Path,
    *,
    enroll_types: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    top_k: int = TOP_K,
    k: int | None = None,
    save: Path | None = None,
    progress: Console | None = None,
) -> dict[str, Any]:
    """Enrols every sequence of `enroll_types`, identifies all others.

    All views stand in the gallery together, the probe's own among them, as in use: for the protocol that excludes
    identical views there is `gaitsdk evaluate`.

    Args:
        recognizer: with an empty gallery that nobody else needs; `Recognizer.load(gallery=":memory:")`.
        enroll_types: None = `GALLERY_TYPES`.
        views: None = all.
        top_k, k: as for `Recognizer.identify`.
        save: where to draw the ranked lists of some probes, first those whose first place changed.
        progress: where to draw progress bars.

    Returns:
        Per condition (the type without its number) `probes`, `rank1_initial`, `rank1` in percent, `enrolled` sequences
        and `identities`, how many probes were `not_enrolled`, what was `skipped` and why, and the runtime, device and
        re-ranker really used.

    Raises:
        DatasetError: no tree, or the named types or views are not in it. OptionError: the gallery is not empty.
    """
    if recognizer.count:
        raise OptionError("the gallery must be empty", where="gallery", got=f"{recognizer.count} entries")
    tree = SequenceTree(root)
    enrolled, probes = _split(tree, enroll_types, views)
    skipped = list(tree.skipped)
    known: set[str] = set()
    for ref in _track(enrolled, "enrolling", progress):
        for _, silhouettes in _usable([ref], recognizer.description, skipped):
            recognizer.enroll(ref.identity, silhouettes)
            known.add(ref.identity)
    mated = [ref for ref in probes if ref.identity in known]
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    pictures = _Pictures()
    # The whole list that is re-ranked, so that the first of the shortlist is among the candidates.
    listed = max(top_k, recognizer.description.k, k or 0)
    for start in _track(range(0, len(mated), BATCH), "identifying", progress):
        usable = list(_usable(mated[start : start + BATCH], recognizer.description, skipped))
        walks = [silhouettes for _, silhouettes in usable]
        # Who is right is counted, not who is known: what the bundle is calibrated for plays no part.
        results = recognizer.identify_many(walks, listed, k=k, threshold=0.0) if usable else []
        for (ref, _), found in zip(usable, results, strict=True):
            result = replace(found, decision="uncalibrated", threshold=None)
            tally = tallies[ref.type.split("-")[0]]
            tally.probes += 1
            tally.before += result.initial.identity == ref.identity
            tally.after += result.identity == ref.identity
            pictures.see(result, ref.identity)
    if save is not None and tallies:
        pictures.save(save)
    about = recognizer.description
    return {
        "root": str(root),
        "enrolled": recognizer.count,
        "identities": len(known),
        "conditions": {name: tally.to_dict() for name, tally in sorted(tallies.items())},
        "not_enrolled": len(probes) - len(mated),
        "skipped": skipped,
        "runtime": about.runtime,
        "device": about.device,
        "reranker": about.reranker,
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    caption = f"{report['enrolled']} sequences of {report['identities']} identities enrolled, all views together"
    table = Table(title=escape(report["root"]), caption=f"{caption}; {report['runtime']} on {report['device']}")
    for column in ("condition", "probes", "Rank-1 initial %", f"Rank-1 {report['reranker']} %"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, figures in report["conditions"].items():
        rank1 = (f"{figures['rank1_initial']:.1f}", f"{figures['rank1']:.1f}")
        table.add_row(escape(name), str(figures["probes"]), *rank1)
    console.print(table)
    if report["not_enrolled"]:
        console.print(f"{report['not_enrolled']} probes of people who are not enrolled were left out", highlight=False)
    for each in report["skipped"]:
        console.print(f"skipped {each}", highlight=False, markup=False)


def _split(
    tree: SequenceTree, enroll_types: Sequence[str] | None, views: Sequence[str] | None
) -> tuple[list[SequenceRef], list[SequenceRef]]:
    """What to enrol and what to identify; every name that was asked for must be there."""
    for name, asked, there in (("types", enroll_types, tree.types), ("views", views, tree.views)):
        if missing := sorted(set(asked or ()) - set(there)):
            raise DatasetError(
                f"the tree has no such {name}",
                where=str(tree.root),
                got=", ".join(missing),
                expected=f"some of {', '.join(there)}",
                fix=f"choose --{'enroll-types' if name == 'types' else 'views'}",
            )
    chosen = GALLERY_TYPES if enroll_types is None else enroll_types
    refs = [ref for ref in tree if views is None or ref.view in views]
    enrolled = [ref for ref in refs if ref.type in chosen]
    probes = [ref for ref in refs if ref.type not in chosen]
    if not enrolled or not probes:
        raise DatasetError(
            "nothing to enrol" if not enrolled else "nothing to identify",
            where=str(tree.root),
            got=f"types {', '.join(tree.types)}",
            expected=f"some of {', '.join(chosen)} to enrol, and other types as probes",
            fix="choose --enroll-types",
        )
    return enrolled, probes


def _usable(
    refs: Sequence[SequenceRef], model: Description, skipped: list[str]
) -> Iterator[tuple[SequenceRef, Silhouettes]]:
    for ref in refs:
        try:
            yield ref, ref.prepare(model.size, channels=model.channels).silhouettes
        except (SilhouetteError, DatasetError) as error:
            skipped.append(f"{ref.identity}/{ref.type}/{ref.view}: {error}")


def _track(items: Any, what: str, console: Console | None) -> Any:
    return items if console is None else track(items, what, console=console)
