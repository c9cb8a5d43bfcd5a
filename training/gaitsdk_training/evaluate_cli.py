"""The verb `gaitsdk evaluate`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gaitsdk_training.console import AsJson, Data, bars
from gaitsdk_training.evaluation_tables import print_report


def evaluate(
    data: Data,
    out: Annotated[Path | None, typer.Argument(help="Write the report to this file, as JSON.")] = None,
    protocol: Annotated[
        str,
        typer.Option(help="casiab, oumvlp, gait3d, grew; casiab-cross-view and oumvlp-cross-view: one gallery."),
    ] = "casiab",
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    reranker: Annotated[
        str, typer.Option(help="cargait, classifier, k-reciprocal, lbr, gcr, query-expansion or none.")
    ] = "cargait",
    scope: Annotated[
        str, typer.Option(help="list: re-rank the first K of each gallery; full: the whole gallery, without networks.")
    ] = "list",
    k: Annotated[
        int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")
    ] = None,
    partition: Annotated[
        Path | None, typer.Option(help="Evaluate its TEST_SET; for gait3d its PROBE_SET are the probes.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="casiab, oumvlp, gait3d or grew: names are checked, its official test part is evaluated."),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="With --protocol grew: write the CSV for the benchmark's server.")
    ] = None,
    two_stage: Annotated[
        bool, typer.Option("--two-stage", help="Also show recall of the list, Rank-1 and FNIR before and after.")
    ] = False,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the features, which are computed once; in the user's cache by default."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the features on disk.")] = True,
    runtime: Annotated[str, typer.Option(help="auto, onnx, torch, torchscript or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a bundle by an official protocol, before and after re-ranking.

    Without --partition and --dataset all identities are evaluated, unless the official test part is there completely.
    """
    from gaitsdk.bundle import Bundle
    from gaitsdk_training.evaluation.tree import evaluate_tree

    _check_writable(out)
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
            partition=partition,
            dataset=dataset,
            reranker=reranker,
            scope=scope,
            k=k,
            runtime=runtime,
            device=device,
            cache=(features or cache_folder()) if keep else None,
            submission_file=submission,
            two_stage=two_stage,
            progress=show,
        )
    if out is not None:
        _write(out, report)
    if as_json and out is None:
        typer.echo(json.dumps(report))
    elif not as_json:
        print_report(report)


def cache_folder() -> Path:
    """Where features are kept: `gaitsdk/features` in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaitsdk" / "features"


def _check_writable(path: Path | None) -> None:
    """Refuses now what could not be written after hours of work."""
    from gaitsdk.errors import OptionError

    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        what = "is a folder" if path.is_dir() else "there is no folder for it"
        raise OptionError(
            what, where=str(path), expected="the name of a file in a folder that exists", fix="choose another name"
        )


def _write(path: Path, report: dict[str, Any]) -> None:
    from gaitsdk.errors import OptionError

    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise OptionError("the report cannot be written", where=str(path), got=error.strerror or str(error)) from error
