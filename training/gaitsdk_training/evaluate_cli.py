"""The verb `gaitsdk evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
from gaitsdk_training.evaluation_tables import print_report


def evaluate(
    data: Data,
    out: Annotated[Path | None, typer.Argument(help="Write the report to this file, as JSON.")] = None,
    protocol: Annotated[
        str,
        typer.Option(help="casiab, oumvlp, gait3d, grew; casiab-cross-view and oumvlp-cross-view: one gallery."),
    ] = "casiab",
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    reranker: Reranker = "cargait",
    scope: Annotated[
        str, typer.Option(help="list: re-rank the first K of each gallery; full: the whole gallery, without networks.")
    ] = "list",
    k: K = None,
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
    plots: Annotated[
        Path | None,
        typer.Option(help="Draw CMC and spider plot, with --two-stage DET and scores, into this folder (matplotlib)."),
    ] = None,
    features: Features = None,
    keep: Keep = True,
    runtime: Runtime = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a bundle by an official protocol, before and after re-ranking.

    Without --partition and --dataset all identities are evaluated, unless the official test part is there completely.
    """
    from gaitsdk.bundle import Bundle
    from gaitsdk_training.evaluation.tree import evaluate_tree

    _check_writable(out)
    with stages(as_json) as show:
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
            cache=feature_folder(features, keep),
            submission_file=submission,
            two_stage=two_stage,
            plots=plots,
            progress=show,
        )
    if out is not None:
        _write(out, report)
    if as_json and out is None:
        typer.echo(json.dumps(report))
    elif not as_json:
        print_report(report)


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
