"""`gaitsdk demo`: enrol synthetic walkers, identify strangers to the model in-process and through Triton, compare."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gaitsdk import synthetic
from gaitsdk.errors import OptionError

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.recognizer import Recognizer
    from gaitsdk.results import Identification

console = Console()
#: None of them took part in the training of the shipped bundle (gaitsdk_training.recipes.default).
FIRST_IDENTITY = 5001
#: Everybody is enrolled from the side only, and seen again from other views: the case that the protocols measure.
ENROLLED = [("nm-01", "090"), ("nm-02", "090")]
PROBES = [(kind, view) for kind in ("nm-05", "bg-01", "cl-01") for view in ("018", "054", "144")]
FRAMES = 30
PICTURED = 6


@dataclass(frozen=True)
class Outcome:
    """One way's answers, in the order of the probes, and its median milliseconds by stage."""

    way: str
    runtime: str
    results: list[Identification]
    stages: dict[str, float]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the figures.")] = Path("demo-output"),
    identities: Annotated[int, typer.Option(min=2, max=500, help="People to enrol.")] = 40,
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    triton: Annotated[bool, typer.Option(help="Also through a real Triton server.")] = True,
) -> None:
    """Enrol and identify synthetic walkers, in-process and through a real Triton server."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.pictures import ranked_lists

    model = Bundle.load(bundle)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError("the folder cannot be made", where=str(out), got=str(error), fix="choose --out") from error
    people = [str(FIRST_IDENTITY + number) for number in range(identities)]
    console.print(_plan(identities, model), highlight=False, markup=False)
    enrolled = {name: [synthetic.sequence(int(name), *walk, frames=FRAMES) for walk in ENROLLED] for name in people}
    probes = [(name, synthetic.sequence(int(name), *walk, frames=FRAMES)) for name in people for walk in PROBES]
    with tempfile.TemporaryDirectory(prefix="gaitsdk-demo-") as folder:
        outcomes = [_in_process(bundle, Path(folder), enrolled, probes)]
        if triton:
            outcomes.append(_through_triton(bundle, Path(folder), enrolled, probes))
        truths = [name for name, _ in probes]
        report = _report(outcomes, truths)
        _print(report)
        chosen = _interesting(outcomes[0].results, truths)
        picture = out / "ranked_lists.png"
        ranked_lists([outcomes[0].results[i] for i in chosen], [truths[i] for i in chosen]).save(picture)
    (out / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"ranked lists before and after re-ranking: {picture}")
    console.print("your own walks: gaitsdk identify --root FOLDER  (any tree id/type/view of masks)")
    if triton and not report["identical"]:
        console.print("the two ways differ: this is a bug, please report it", style="red")
        raise typer.Exit(1)


def _plan(identities: int, model: Bundle) -> str:
    views = " and ".join(sorted({view for _, view in ENROLLED}))
    unseen = ", ".join(sorted({view for _, view in PROBES}))
    data = model.manifest.training.get("data", "not stated")
    return (
        f"Model {model.fingerprint[:12]}, {model.manifest.architecture.name}; trained on: {data}.\n"
        f"{identities} synthetic people (numbers {FIRST_IDENTITY} and up; the shipped model was trained on others). "
        f"Enrolled: {len(ENROLLED)} normal walks each, from view {views}. "
        f"Probes: normal, with a bag, in a coat, from views {unseen}."
    )


def _in_process(
    bundle: Path | None, folder: Path, enrolled: dict[str, list[Any]], probes: Sequence[tuple[str, Any]]
) -> Outcome:
    from gaitsdk.recognizer import Recognizer

    with Recognizer.load(bundle, gallery=folder / "in_process.db") as recognizer:
        _enroll(recognizer, enrolled, "in-process")
        results = _identify(recognizer, probes, "in-process")
        about = recognizer.description
        pictures = [_with_pictures(result) for result in results]
    stages = {
        "embed": statistics.median(result.timings_ms["embed"] for result in results),
        "rank": statistics.median(result.timings_ms["shortlist"] + result.timings_ms["rerank"] for result in results),
    }
    stages["total"] = statistics.median(sum(result.timings_ms.values()) for result in results)
    return Outcome("in-process", f"{about.runtime} on {about.device}", pictures, stages)


def _through_triton(
    bundle: Path | None, folder: Path, enrolled: dict[str, list[Any]], probes: Sequence[tuple[str, Any]]
) -> Outcome:
    from gaitsdk.recognizer import Recognizer
    from gaitsdk_export.serving_cli import prepare_gallery
    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.repository import render
    from gaitsdk_export.triton.server import TritonServer

    settings = Settings(
        bundle=None if bundle is None else str(bundle.absolute()), gallery=str(folder / "triton.db"), runtime="auto"
    )
    prepare_gallery(settings)
    started = time.perf_counter()
    with TritonServer(render(bundle, folder / "models"), settings) as server:
        console.print(f"tritonserver is ready after {time.perf_counter() - started:.1f} s at {server.grpc_url}")
        with Recognizer.connect(server.grpc_url) as recognizer:
            _enroll(recognizer, enrolled, "Triton")
            before = _executions(server.http_url)
            results = _identify(recognizer, probes, "Triton")
            after = _executions(server.http_url)
            about = recognizer.description
    stages = {
        name: (after[name][0] - before[name][0]) / max(1, after[name][1] - before[name][1]) / 1e6 for name in before
    }
    stages["total"] = statistics.median(result.timings_ms["round_trip"] for result in results)
    return Outcome("Triton", f"{about.runtime} on {about.device}", results, stages)


def _enroll(recognizer: Recognizer, enrolled: dict[str, list[Any]], way: str) -> None:
    for name, walks in track(enrolled.items(), f"enrolling, {way}", console=console, transient=True):
        recognizer.enroll(name, walks)


def _identify(recognizer: Recognizer, probes: Sequence[tuple[str, Any]], way: str) -> list[Identification]:
    steps = track(probes, f"identifying, {way}", console=console, transient=True)
    return [recognizer.identify(silhouettes) for _, silhouettes in steps]


def _with_pictures(result: Identification) -> Identification:
    """The same, with its candidates' frames fetched while the gallery is open."""
    frames = result.thumbnails()
    return replace(result, _thumbnails=lambda entries: frames)


def _executions(url: str) -> dict[str, tuple[int, int]]:
    """Nanoseconds and number of executions of each stage so far, from the server's own statistics."""
    found = {}
    for stage, model in (("embed", "embed"), ("rank", "shortlist")):
        with urllib.request.urlopen(f"{url}/v2/models/{model}/stats", timeout=5) as answer:
            statistic = json.load(answer)["model_stats"][0]["inference_stats"]["compute_infer"]
        found[stage] = (int(statistic.get("ns", 0)), int(statistic.get("count", 0)))
    return found


def _report(outcomes: list[Outcome], truths: list[str]) -> dict[str, Any]:
    conditions = [kind.split("-")[0] for kind, _ in PROBES] * (len(truths) // len(PROBES))
    ways = {}
    for outcome in outcomes:
        before = [result.initial.identity == truth for result, truth in zip(outcome.results, truths, strict=True)]
        after = [result.identity == truth for result, truth in zip(outcome.results, truths, strict=True)]
        ways[outcome.way] = {
            "runtime": outcome.runtime,
            "rank1_initial": _percent(before, conditions),
            "rank1_cargait": _percent(after, conditions),
            "milliseconds": {name: round(value, 2) for name, value in outcome.stages.items()},
        }
    report: dict[str, Any] = {"probes": len(truths), "ways": ways}
    if len(outcomes) == 2:
        lists = [[[each.entry_id for each in result.candidates] for result in way.results] for way in outcomes]
        values = [[each.distance for result in way.results for each in result.candidates] for way in outcomes]
        report["same_lists"] = sum(mine == theirs for mine, theirs in zip(*lists, strict=True))
        report["largest_difference"] = max(abs(a - b) for a, b in zip(*values, strict=True))
        report["identical"] = report["same_lists"] == len(truths) and report["largest_difference"] <= 1e-4
    return report


def _percent(hits: list[bool], conditions: list[str]) -> dict[str, float]:
    figures = {"all": 100 * sum(hits) / len(hits)}
    for name in ("nm", "bg", "cl"):
        chosen = [hit for hit, condition in zip(hits, conditions, strict=True) if condition == name]
        figures[name] = 100 * sum(chosen) / len(chosen)
    return {name: round(value, 1) for name, value in figures.items()}


def _print(report: dict[str, Any]) -> None:
    accuracy = Table(title=f"Rank-1 in %, {report['probes']} probes")
    for column in ("way", "re-ranking", "all", "normal", "bag", "coat"):
        accuracy.add_column(column, justify="left" if column in ("way", "re-ranking") else "right")
    times = Table(title="milliseconds per probe")
    for column in ("way", "networks", "embed", "shortlist and CarGait", "in all"):
        times.add_column(column, justify="left" if column in ("way", "networks") else "right")
    for way, figures in report["ways"].items():
        for name, key in (("none", "rank1_initial"), ("CarGait", "rank1_cargait")):
            accuracy.add_row(way, name, *(f"{figures[key][each]:.1f}" for each in ("all", "nm", "bg", "cl")))
        stages = (f"{figures['milliseconds'][name]:.1f}" for name in ("embed", "rank", "total"))
        times.add_row(way, figures["runtime"], *stages)
    console.print(accuracy, times)
    if "identical" in report:
        console.print(
            f"same candidates in the same order for {report['same_lists']} of {report['probes']} probes; "
            f"largest difference of a distance {report['largest_difference']:.1e}",
            highlight=False,
        )


def _interesting(results: list[Identification], truths: list[str]) -> list[int]:
    """Probes to draw: first those whose first place changed hands (for better or worse), then those that moved most."""

    def moved(index: int) -> tuple[bool, int]:
        result, truth = results[index], truths[index]
        decided = (result.initial.identity == truth) != (result.identity == truth)
        return decided, sum(abs(each.rank - each.shortlist_rank) for each in result.candidates)

    return sorted(sorted(range(len(results)), key=moved, reverse=True)[:PICTURED])
