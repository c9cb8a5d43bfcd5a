"""The command line: `gaitsdk VERB`. Verbs of other packages join by the entry point group `gaitsdk.commands`."""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gaitsdk import pipeline
from gaitsdk.connection_cli import Ca, Cert, Connection, Key, Server, Timeout, Token
from gaitsdk.errors import GaitError, GalleryError, OptionError
from gaitsdk.pictures import check_picture_path
from gaitsdk.recognizer import TOP_K, Recognizer
from gaitsdk.rerankers import RERANKERS
from gaitsdk.runtimes import BY_NAME, RUNTIMES
from gaitsdk.runtimes.retries import TIMEOUT
from gaitsdk.silhouettes import prepare
from gaitsdk.tree_report import identify_tree, print_report

if TYPE_CHECKING:
    from gaitsdk.results import Identification

console = Console()
Bundle = Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")]
Gallery = Annotated[str | None, typer.Option(help="The gallery's file, or :memory:; the user's own by default.")]
Runtime = Annotated[str, typer.Option(help=f"auto, {', '.join((*RUNTIMES, *BY_NAME))}.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
Reranker = Annotated[str, typer.Option(help=f"{', '.join(RERANKERS)}.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Sequence = Annotated[
    Path,
    typer.Argument(
        help="A folder of PNG masks, or a .npy or .pkl file with an array [T,H,W] ([T,3,S,S] for models of three maps)."
    ),
]


def _open(
    bundle: Path | None,
    gallery: str | None,
    runtime: str,
    device: str,
    reranker: str,
    connection: Connection,
    *,
    reads: bool = False,
) -> Recognizer:
    """The Recognizer that the common options describe; `reads`: a gallery that is not there is of no use."""
    if connection.server is not None:
        given = {"bundle": bundle, "gallery": gallery}
        chosen = {"runtime": runtime != "auto", "device": device != "auto", "reranker": reranker != "cargait"}
        clash = [f"--{name}" for name, value in given.items() if value is not None]
        clash += [f"--{name}" for name, differs in chosen.items() if differs]
        if clash:
            raise OptionError("the server has its own", where="--server", got=" ".join(clash), fix="leave them out")
    if (remote := connection.open()) is not None:
        return remote
    if reads and gallery not in (None, ":memory:") and not Path(str(gallery)).exists():
        raise GalleryError(
            "there is no such gallery", where=str(gallery), fix="check --gallery, or enroll somebody first"
        )
    return Recognizer.load(bundle, runtime=runtime, device=device, gallery=gallery, reranker=reranker)


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
    token: Token = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    timeout: Timeout = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Add a person's sequences to the gallery."""
    connection = Connection(server, token, ca, cert, key, timeout)
    with _open(bundle, gallery, runtime, device, reranker, connection) as recognizer:
        # All are read before the first is enrolled, and enrolled in one call: all of them or none.
        about = recognizer.description
        walks = [prepare(path, about.size, channels=about.channels).silhouettes for path in sequences]
        entries = recognizer.enroll(identity, walks)
        count = recognizer.count
    if as_json:
        print(json.dumps({"identity": identity, "entries": entries, "gallery_size": count}))
    else:
        _say(f"enrolled {identity}: {len(entries)} sequence(s); the gallery holds {count}")


def identify(
    sequences: Annotated[
        list[Path] | None, typer.Argument(help="Sequences: folders of PNG masks, .npy or .pkl files.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="A CASIA-B-style tree (id/type/view): enrols some of it, identifies the rest.")
    ] = None,
    enroll_types: Annotated[
        str | None,
        typer.Option(
            help="With --root: sequence types to enrol, comma separated; the others are probes. "
            "Without: those of nm-01 to nm-04 that are there."
        ),
    ] = None,
    views: Annotated[str | None, typer.Option(help="With --root: only these views, comma separated.")] = None,
    top_k: Annotated[int, typer.Option(help="Candidates to list.")] = TOP_K,
    k: Annotated[
        int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Known means distance <= threshold; the bundle's by default.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write ranked lists as a picture (.png), or without --root as data (.json).")
    ] = None,
    bundle: Bundle = None,
    gallery: Gallery = None,
    runtime: Runtime = "auto",
    device: Device = "auto",
    reranker: Reranker = "cargait",
    server: Server = None,
    token: Token = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    timeout: Timeout = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say who sequences show, or whether they are unknown."""
    connection = Connection(server, token, ca, cert, key, timeout)
    if (root is None) == (not sequences):
        raise OptionError("name sequences or --root, one of the two", where="identify", fix="gaitsdk identify FOLDER")
    if save is not None and (root is not None or save.suffix.lower() != ".json"):
        check_picture_path(save)
    if root is not None:
        if given := [
            n for n, v in (("gallery", gallery), ("server", server), ("threshold", threshold)) if v is not None
        ]:
            raise OptionError(
                "a tree brings its own gallery and nobody unknown",
                where="--root",
                got=f"--{given[0]}",
                fix="leave it out",
            )
        pipeline.check_count(top_k, "top_k")
        with _open(bundle, ":memory:", runtime, device, reranker, connection) as recognizer:
            report = identify_tree(
                recognizer,
                root,
                enroll_types=_names(enroll_types),
                views=_names(views),
                top_k=top_k,
                k=k,
                save=save,
                progress=None if as_json else Console(stderr=True),
            )
        print(json.dumps(report)) if as_json else print_report(report, console)
        return
    if enroll_types is not None or views is not None:
        raise OptionError("only for trees", where="--enroll-types, --views", fix="name the tree with --root")
    paths = sequences or []
    with _open(bundle, gallery, runtime, device, reranker, connection, reads=True) as recognizer:
        results = [recognizer.identify(path, top_k, k=k, threshold=threshold) for path in paths]
        if save is not None:
            for index, result in enumerate(results):
                result.save(save if len(results) == 1 else save.with_stem(f"{save.stem}-{index}"))
    if as_json:
        print(json.dumps([result.to_dict() for result in results]))
        return
    for path, result in zip(paths, results, strict=True):
        console.print(_table(str(path), result))


def _names(text: str | None) -> list[str] | None:
    """ "a, b" -> ["a", "b"]."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _say(text: str) -> None:
    """Prints text as it is: names of people and files may look like markup."""
    console.print(text, highlight=False, markup=False)


def _table(title: str, result: Identification) -> Table:
    name = {"known": f"known: {result.identity}", "unknown": "unknown"}.get(
        result.decision, f"nearest: {result.identity} (no threshold is calibrated)"
    )
    table = Table(
        title=escape(f"{title}\n{name}"), caption=f"{result.runtime} on {result.device}, re-ranker {result.reranker}"
    )
    for column in ("rank", "identity", "distance", "shortlist rank", "shortlist distance"):
        table.add_column(column, justify="left" if column == "identity" else "right")
    for each in result.candidates:
        distance = f"{each.distance:.4f}" if each.reranked or result.reranker == "none" else "-"
        cells = (distance, str(each.shortlist_rank), f"{each.shortlist_distance:.4f}")
        table.add_row(str(each.rank), escape(each.identity), *cells)
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
    token: Token = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    timeout: Timeout = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Say whether two sequences show the same person."""
    gallery = ":memory:" if server is None else None
    connection = Connection(server, token, ca, cert, key, timeout)
    with _open(bundle, gallery, runtime, device, reranker, connection) as recognizer:
        result = recognizer.verify(first, second, threshold=threshold)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        limit = "no threshold is calibrated" if result.threshold is None else f"threshold {result.threshold:.4f}"
        _say(f"{result.decision}: distance {result.distance:.4f} ({limit})")


def doctor(bundle: Bundle = None, as_json: AsJson = False) -> None:
    """Show versions, devices, a bundle and its artefacts, and which runtimes work here."""
    from gaitsdk.doctor import examine

    findings = examine(bundle)
    if as_json:
        print(json.dumps(findings))
        return
    table = Table("what", "finding")
    for name, finding in findings.items():
        table.add_row(name, escape(finding))
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
    """Runs a verb. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        build()(arguments)
    except OptionError as error:
        _fail(error, 2)
    except (GaitError, OSError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    Console(stderr=True).print(f"error: {error}", style="red", highlight=False, markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
