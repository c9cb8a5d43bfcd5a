"""The verb `gaitsdk calibrate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaitsdk_training.console import (
    AsJson,
    Data,
    Device,
    Features,
    K,
    Keep,
    Reranker,
    Runtime,
    feature_folder,
    stages,
)  # fmt: skip


def calibrate(
    data: Data,
    bundle: Annotated[Path, typer.Option(help="The bundle NAME.gait into which the thresholds are written.")],
    fpir: Annotated[
        float,
        typer.Option(help="Share of strangers that may be taken for somebody, a fraction; it takes 3/FPIR people."),
    ] = 0.01,
    fmr: Annotated[
        float | None, typer.Option(help="Share of pairs of two people that verify may call the same; FPIR by default.")
    ] = None,
    reranker: Reranker = "cargait",
    k: K = None,
    gallery_size: Annotated[
        list[int] | None,
        typer.Option(help="Entries of the gallery in use; any number of times. By default half of the people."),
    ] = None,
    per_person: Annotated[int, typer.Option(help="Entries of each enrolled person.")] = 1,
    enroll_types: Annotated[
        str | None,
        typer.Option(help="Sequence types to enrol, comma separated; the others are probes. Else nm-01 to nm-04."),
    ] = None,
    galleries: Annotated[int, typer.Option(help="Random galleries per size.")] = 10,
    probes: Annotated[int, typer.Option(help="Probes of a person per gallery, at most.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the random galleries.")] = 0,
    partition: Annotated[
        Path | None, typer.Option(help="Use its TEST_SET; without it all identities. Never people who trained.")
    ] = None,
    features: Features = None,
    keep: Keep = True,
    runtime: Runtime = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Set the thresholds of identify and verify on people whom the model has not seen."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.datasets import Partition
    from gaitsdk.errors import BundleError
    from gaitsdk_training.evaluation.calibrate import Goal, calibrate_bundle
    from gaitsdk_training.evaluation.galleries import Plan

    goal = Goal(
        fpir=fpir,
        fmr=fmr,
        sizes=tuple(gallery_size or ()),
        enroll_types=None if enroll_types is None else tuple(name.strip() for name in enroll_types.split(",")),
        plan=Plan(per_person=per_person, galleries=galleries, probes=probes, seed=seed),
    )
    model = Bundle.load(bundle)
    if not os.access(model.path, os.W_OK):  # before the embedding, which takes long
        raise BundleError("the bundle cannot be written", where=str(bundle), fix="calibrate a copy of it")
    with stages(as_json) as show:
        report = calibrate_bundle(
            data,
            model,
            goal,
            identities=None if partition is None else Partition.read(partition).test,
            reranker=reranker,
            k=k,
            runtime=runtime,
            device=device,
            cache=feature_folder(features, keep),
            progress=show,
        )
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    counts = f"{report['sequences']} sequences of {report['people']} people"
    about = f"{counts}; {report['runtime']} on {report['device']}, re-ranker {report['reranker']}"
    # Text and not markup: names of folders may hold brackets.
    table = Table(title=Text(f"{report['bundle']}, calibrated"), caption=Text(about))
    for name in ("task", "gallery", "threshold", "false positives, %", "misses, %", "people"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for each in report["calibrations"]:
        identify = each["task"] == "identify"
        size = str(each["gallery_size"]) if identify else "-"
        rates = [_percent(each[name]) for name in ("false_positives", "misses")]
        table.add_row(each["task"], size, f"{each['threshold']:.4f}", *rates, str(each["people"]))
    console = Console()
    console.print(table)
    console.print(
        "In brackets: 95 % intervals. Figures of the people that the thresholds were set on; measure on others.",
        highlight=False,
    )
    for each in report["skipped"]:
        console.print(f"skipped {each['sequence']}: {each['reason']}", highlight=False, markup=False)


def _percent(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return str(rate["reason"])
    return f"{100 * rate['value']:.2f} ({100 * rate['low']:.2f} to {100 * rate['high']:.2f})"
