"""`gaitsdk export`: compiles a bundle's networks, compares their answers, and shows a table."""

from __future__ import annotations

import enum
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


class Judge(str, enum.Enum):
    """What a verdict rests on."""

    answers = "answers"
    task = "task"


def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle NAME.gait; its artefacts/ folder is written.")],
    to: Annotated[
        str, typer.Option(help="Formats, comma separated: onnx, torchscript, tensorrt, tensorrt-rtx.")
    ] = "onnx,torchscript",
    precision: Annotated[str, typer.Option(help="Precisions, comma separated: fp32, fp16, bf16, int8.")] = "fp32",
    batch: Annotated[str, typer.Option(help="Engines: least:best:most sequences in a call.")] = "1:8:64",
    frames: Annotated[
        str,
        typer.Option(help="Engines: least:best:most frames; a profile for each of several, comma separated."),
    ] = "15:30:120",
    candidates: Annotated[
        str | None, typer.Option(help="Engines: least:best:most candidates K; default 1 to ten times the bundle's K.")
    ] = None,
    sm: Annotated[
        str | None, typer.Option(help="tensorrt-rtx: compute capabilities, e.g. 75,80,86,89,120; default all it can.")
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, help="Engines: MiB of scratch memory at the largest sizes; default the GPU's, or 64 GiB."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="int8: a tree <root>/<identity>/<type>/<view>/ to take the scales from; synthetic walkers by default."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the answers with PyTorch's; a difference fails.")
    ] = True,
    verdict: Annotated[
        Judge, typer.Option(help="task: judge Rank-1 and the order of the first ten over 100 synthetic people, too.")
    ] = Judge.answers,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compile a bundle's networks and prove that they give the same answers."""
    from gaitsdk_export.bundles import export_bundle
    from gaitsdk_export.formats import Range, Sizes
    from gaitsdk_export.parity import Verdict

    errors = Console(stderr=True)
    try:
        sizes = Sizes(
            Range.parse(batch, "--batch"),
            Range.parse_all(frames, "--frames"),
            None if candidates is None else Range.parse(candidates, "--candidates"),
        )
        results = export_bundle(
            bundle,
            _words(to),
            verify=verify,
            progress=None if as_json else lambda line: errors.print(line, highlight=False, markup=False),
            precisions=_words(precision),
            sizes=sizes,
            capabilities=_words(sm or ""),
            task=verdict is Judge.task,
            calibration=calibration,
            workspace_mib=workspace,
        )
    except GaitError as error:
        errors.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(2 if isinstance(error, OptionError) else 1) from error
    if as_json:
        print(json.dumps([each.to_dict() for each in results]))
    else:
        Console().print(table(str(bundle), results))
        for style, line in remarks(results):
            errors.print(line, style=style, highlight=False, markup=False)
    # Nothing made is no success either, though nothing failed: a script that goes on would not find its engine.
    if any(each.verdict is Verdict.FAIL for each in results) or all(each.path is None for each in results):
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def table(title: str, results: list[ExportResult]) -> Table:
    """One row per artefact, at most 80 columns wide; in less the file's name goes over several lines, never cut."""
    # Text and not markup: the title is the user's path, and may hold brackets.
    caption = "error (largest) and cosine (smallest): over all compared cases; latency: this machine, one item"
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


def remarks(results: list[ExportResult]) -> list[tuple[str, str]]:
    """Lines below the table, each with its style: figures over people, then why something failed or was skipped."""
    lines = [
        (
            "none",
            f"{_name(each)}: Rank-1 {each.task.rank1:.1f} % (PyTorch {each.task.rank1_eager:.1f} %) over "
            f"{each.task.identities} synthetic people, {each.task.same_order:.2%} of the pairs in the same order",
        )
        for each in results
        if each.task is not None
    ]
    why: dict[tuple[str, str], list[str]] = {}
    for each in results:
        if each.reason is not None:
            why.setdefault(("red" if each.verdict.value == "FAIL" else "yellow", each.reason), []).append(_name(each))
    return lines + [(style, f"{', '.join(names)}: {reason}") for (style, reason), names in why.items()]


def _name(result: ExportResult) -> str:
    return f"{result.network}.{result.format} {result.precision}"


def _megabytes(count: int) -> str:
    size = count / 1e6
    return f"{size:.2f}" if size < 100 else f"{size:.0f}"
