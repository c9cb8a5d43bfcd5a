"""The verb `gaitsdk evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaitsdk_training.console import AsJson, Data, bars


def evaluate(
    data: Data,
    out: Annotated[Path | None, typer.Argument(help="Write the figures to this file, as JSON.")] = None,
    protocol: Annotated[str, typer.Option(help="casiab.")] = "casiab",
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    reranker: Annotated[str, typer.Option(help="cargait or none.")] = "cargait",
    k: Annotated[
        int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")
    ] = None,
    partition: Annotated[
        Path | None, typer.Option(help="Evaluate its TEST_SET; without it all identities of the tree.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto, onnx, torch or torchscript.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a bundle by an official protocol, before and after re-ranking."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.datasets import Partition as Split
    from gaitsdk_training.evaluation.tree import evaluate_tree

    identities = None if partition is None else Split.read(partition).test
    with bars(as_json) as bar:
        shown: dict[str, Callable[[int, int], None]] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bar(stage)
            shown[stage](done, total)

        report = evaluate_tree(
            data,
            Bundle.load(bundle),
            protocol=protocol,
            identities=identities,
            reranker=reranker,
            k=k,
            runtime=runtime,
            device=device,
            progress=show,
        )
    if out is not None:
        _write(out, report)
    if as_json and out is None:
        typer.echo(json.dumps(report))
    elif not as_json:
        _print(report)


def _write(path: Path, report: dict[str, Any]) -> None:
    from gaitsdk.errors import OptionError

    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise OptionError("the figures cannot be written", where=str(path), got=str(error)) from error


def _print(report: dict[str, Any]) -> None:
    figures, reranked = report["figures"], report["reranker"] != "none"
    about = (
        f"{report['sequences']} sequences; {report['runtime']} on {report['device']}, re-ranker {report['reranker']}"
    )
    # Text and not markup: names of folders and runtimes may hold brackets.
    table = Table(title=Text(f"{report['protocol']}, identical views excluded, percent"), caption=Text(about))
    columns = {"Rank-1": "rank1", "Rank-5": "rank5"}
    if reranked:
        columns = {
            name: key
            for rank in (1, 5)
            for name, key in ((f"Rank-{rank} initial", f"rank{rank}_initial"), (f"Rank-{rank}", f"rank{rank}"))
        }
    table.add_column("condition")
    for name in columns:
        table.add_column(name, justify="right")
    conditions = [key.removeprefix("rank1/") for key in figures if key.startswith("rank1/") and key.count("/") == 1]
    for condition in conditions:
        table.add_row(Text(condition), *(f"{figures[f'{key}/{condition}']:.2f}" for key in columns.values()))
    table.add_row("mean", *(f"{figures[key]:.2f}" for key in columns.values()))
    console = Console()
    console.print(table)
    if gain := report["gain"]:
        interval = f"95 % interval {gain['low']:+.2f} to {gain['high']:+.2f}"
        console.print(f"Rank-1 gain over all rankings {gain['mean']:+.2f} points, {interval}", highlight=False)
    if report["missing"]:
        missing = ", ".join(report["missing"])
        console.print(f"identities of the partition that the tree has not: {missing}", highlight=False, markup=False)
    for each in report["skipped"]:
        console.print(f"skipped {each['sequence']}: {each['reason']}", highlight=False, markup=False)
