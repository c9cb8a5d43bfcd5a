"""The command line: `gaitsdk VERB`. Verbs of other packages join by the entry point group `gaitsdk.commands`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gaitsdk.errors import GaitError, OptionError
from gaitsdk.recognizer import TOP_K, Recognizer

if TYPE_CHECKING:
    from gaitsdk.results import Identification

console = Console()
Bundle = Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")]
Gallery = Annotated[str | None, typer.Option(help="The gallery's file, or :memory:; the user's own by default.")]
Runtime = Annotated[str, typer.Option(help="auto, onnx, torch or torchscript.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
Reranker = Annotated[str, typer.Option(help="cargait or none.")]
Server = Annotated[
    str | None, typer.Option(help="A Triton server (grpc://host:port or http://host:port) to ask instead.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Sequence = Annotated[Path, typer.Argument(help="A folder of PNG masks, or a .npy or .pkl file with an array [T,H,W].")]


def _open(
    bundle: Path | None, gallery: str | None, runtime: str, device: str, reranker: str, server: str | None
) -> Recognizer:
    if server is None:
        return Recognizer.load(bundle, runtime=runtime, device=device, gallery=gallery, reranker=reranker)
    clash = {"bundle": bundle, "gallery": gallery}
    if given := [f"--{name}" for name, value in clash.items() if value is not None]:
        raise OptionError(
            "the server has its own", where="--server", got=" ".join(given), fix="leave these options out"
        )
    return Recognizer.connect(server)


def enroll(
    identity: Annotated[str, typer.Argument(help="The person's name.")],
    sequences: Annotated[
        list[Path], typer.Argument(help="One or more sequences: folders of PNG masks, .npy or .pkl files.")
    ],
    bundle: Bundle = None,
    gallery: Gallery = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    reranker: Reranker = "cargait",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Add a person's sequences to the gallery."""
    with _open(bundle, gallery, runtime, device, reranker, server) as recognizer:
        entries = [entry for path in sequences for entry in recognizer.enroll(identity, path)]
        count = recognizer.count
    if as_json:
        print(json.dumps({"identity": identity, "entries": entries, "gallery_size": count}))
    else:
        console.print(f"enrolled {identity}: {len(entries)} sequence(s); the gallery holds {count}", highlight=False)


def identify(
    sequences: Annotated[
        list[Path] | None, typer.Argument(help="Sequences: folders of PNG masks, .npy or .pkl files.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="A CASIA-B-style tree (id/type/view): enrols some of it, identifies the rest.")
    ] = None,
    enroll_types: Annotated[
        str, typer.Option(help="With --root: sequence types to enrol, comma separated; the others are probes.")
    ] = "nm-01,nm-02,nm-03,nm-04",
    views: Annotated[str | None, typer.Option(help="With --root: only these views, comma separated.")] = None,
    top_k: Annotated[int, typer.Option(help="Candidates to list.")] = TOP_K,
    k: Annotated[
        int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Known means distance <= threshold; the bundle's by default.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the ranked list as a picture (.png) or as data (.json).")
    ] = None,
    bundle: Bundle = None,
    gallery: Gallery = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    reranker: Reranker = "cargait",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Say who sequences show, or whether they are unknown."""
    if (root is None) == (not sequences):
        raise OptionError("name sequences or --root, one of the two", where="identify", fix="gaitsdk identify FOLDER")
    if root is not None:
        from gaitsdk.tree_report import identify_tree, print_report

        # A tree brings its own gallery: nothing of it must land in the user's.
        gallery = ":memory:" if gallery is None and server is None else gallery
        with _open(bundle, gallery, runtime, device, reranker, server) as recognizer:
            report = identify_tree(
                recognizer,
                root,
                enroll_types=enroll_types.split(","),
                views=views.split(",") if views else None,
                top_k=top_k,
                save=save,
                progress=None if as_json else Console(stderr=True),
            )
        print(json.dumps(report)) if as_json else print_report(report, console)
        return
    with _open(bundle, gallery, runtime, device, reranker, server) as recognizer:
        results = [recognizer.identify(path, top_k, k=k, threshold=threshold) for path in sequences or []]
        if save is not None:
            for index, result in enumerate(results):
                result.save(save if len(results) == 1 else save.with_stem(f"{save.stem}-{index}"))
    if as_json:
        print(json.dumps([result.to_dict() for result in results]))
        return
    for path, result in zip(sequences or [], results, strict=True):
        console.print(_table(str(path), result))


def _table(title: str, result: Identification) -> Table:
    name = {"known": f"known: {result.identity}", "unknown": "unknown"}.get(
        result.decision, f"nearest: {result.identity} (no threshold is calibrated)"
    )
    table = Table(title=f"{title}\n{name}", caption=f"{result.runtime} on {result.device}, re-ranker {result.reranker}")
    for column in ("rank", "identity", "distance", "shortlist rank", "shortlist distance"):
        table.add_column(column, justify="left" if column == "identity" else "right")
    for each in result.candidates:
        distance = f"{each.distance:.4f}" if each.reranked or result.reranker == "none" else "-"
        cells = (distance, str(each.shortlist_rank), f"{each.shortlist_distance:.4f}")
        table.add_row(str(each.rank), each.identity, *cells)
    return table


def verify(
    first: Sequence,
    second: Sequence,
    threshold: Annotated[
        float | None, typer.Option(help="Same means distance <= threshold; the bundle's by default.")
    ] = None,
    bundle: Bundle = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    reranker: Reranker = "cargait",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Say whether two sequences show the same person."""
    gallery = ":memory:" if server is None else None
    with _open(bundle, gallery, runtime, device, reranker, server) as recognizer:
        result = recognizer.verify(first, second, threshold=threshold)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        limit = "no threshold is calibrated" if result.threshold is None else f"threshold {result.threshold:.4f}"
        console.print(f"{result.decision}: distance {result.distance:.4f} ({limit})", highlight=False)


def doctor(as_json: AsJson = False) -> None:
    """Show versions, the shipped bundle, and which runtimes work here."""
    from gaitsdk.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(findings))
        return
    table = Table("what", "finding")
    for name, finding in findings.items():
        table.add_row(name, finding)
    console.print(table)


def build() -> typer.Typer:
    """The application with every verb that is installed."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Recognise people by their gait.")
    for verb in (enroll, identify, verify, doctor):
        app.command(verb.__name__)(verb)
    for point in sorted(entry_points(group="gaitsdk.commands"), key=lambda each: each.name):
        command = point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)
    return app


def main(arguments: list[str] | None = None) -> Any:
    """Runs a verb. Exit codes: 0 done, 1 failed, 2 bad usage."""
    try:
        build()(arguments)
    except GaitError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(2 if isinstance(error, OptionError) else 1)


if __name__ == "__main__":
    main()
