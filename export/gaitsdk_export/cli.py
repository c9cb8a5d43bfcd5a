"""`gaitsdk export`: compiles a bundle's networks, compares their answers, and shows a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaitsdk.errors import GaitError, OptionError

if TYPE_CHECKING:
    from gaitsdk_export.bundles import ExportResult


def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle NAME.gait; its artefacts/ folder is written.")],
    to: Annotated[str, typer.Option(help="Formats, comma separated: onnx, torchscript.")] = "onnx,torchscript",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the answers with PyTorch's; a difference fails.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compile a bundle's networks and prove that they give the same answers."""
    from gaitsdk_export.bundles import export_bundle
    from gaitsdk_export.parity import Verdict

    errors = Console(stderr=True)
    try:
        results = export_bundle(
            bundle,
            [each.strip() for each in to.split(",") if each.strip()],
            verify=verify,
            progress=None if as_json else lambda line: errors.print(line, highlight=False, markup=False),
        )
    except GaitError as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(2 if isinstance(error, OptionError) else 1) from error
    if as_json:
        print(json.dumps([each.to_dict() for each in results]))
    else:
        Console().print(table(str(bundle), results))
        for each in results:
            if each.reason is not None:
                errors.print(
                    f"{each.network} to {each.format}: {each.reason}", style="red", highlight=False, markup=False
                )
    if any(each.verdict is Verdict.FAIL for each in results):
        raise typer.Exit(1)


def table(title: str, results: list[ExportResult]) -> Table:
    """One row per artefact, at most 80 columns wide; in less the file's name goes over several lines, never cut."""
    # Text and not markup: the title is the user's path, and may hold brackets.
    caption = "error (largest) and cosine (smallest): over all compared cases; latency: CPU, one item"
    view = Table(title=Text(title), caption=caption)
    view.add_column("file", overflow="fold")
    for column in ("MB", "type", "error", "cosine", "ms", "verdict"):
        view.add_column(column, justify="left" if column == "verdict" else "right", no_wrap=True)
    colour = {"OK": "green", "FAIL": "red", "SKIPPED": "yellow"}
    for each in results:
        verdict = each.verdict.value
        view.add_row(
            f"{each.network}.{each.format}",
            "-" if each.size_bytes is None else _megabytes(each.size_bytes),
            each.precision,
            "-" if each.max_abs is None else f"{each.max_abs:.1e}",
            "-" if each.cosine is None else f"{each.cosine:.7f}",
            "-" if each.latency_ms is None else f"{each.latency_ms:.1f}",
            f"[{colour[verdict]}]{verdict}[/]",
        )
    return view


def _megabytes(count: int) -> str:
    size = count / 1e6
    return f"{size:.2f}" if size < 100 else f"{size:.0f}"
