"""`gaitsdk serve` and `gaitsdk deploy`: a Triton server on this machine, and the model repository for another one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gaitsdk.errors import OptionError, ServerError
from gaitsdk.recognizer import default_gallery
from gaitsdk.rerankers import RERANKERS

if TYPE_CHECKING:
    from types import FrameType

    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.server import TritonServer

console = Console(stderr=True)
Bundle = Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")]
Reranker = Annotated[str, typer.Option(help=f"{', '.join(RERANKERS)}; with none the shortlist's order is the answer.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")]


def serve(
    bundle: Bundle = None,
    gallery: Annotated[
        Path | None, typer.Option(help="The gallery's file, made where it is missing; the user's own by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. The server has no authentication.")] = "127.0.0.1",
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    reranker: Reranker = "cargait",
    runtime: Annotated[str, typer.Option(help="auto, onnx, torch or torchscript.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the backbone.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks, each in a process of its own.")] = 1,
    log: Annotated[Path | None, typer.Option(help="Keep the server's log in this file.")] = None,
) -> None:
    """Serve a bundle and a gallery with a Triton server, until Ctrl-C or SIGTERM."""
    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.leftovers import make_folder
    from gaitsdk_export.triton.repository import Options, render
    from gaitsdk_export.triton.server import TritonServer

    people = Path(default_gallery() if gallery is None else gallery).absolute()
    settings = Settings(
        bundle=None if bundle is None else str(bundle.absolute()),
        gallery=str(people),
        runtime=runtime,
        device=device,
        threads=threads,
    )
    check_networks(settings, reranker)
    folder = make_folder("models")
    try:
        server = TritonServer(
            folder / "models",
            settings,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log=log,
        )
        prepare_gallery(settings)
        render(bundle, server.repository, Options(instances=instances, reranker=reranker))
        if host not in ("127.0.0.1", "::1", "localhost"):
            _say("whoever reaches this address may enrol and delete: fence it with a proxy", style="yellow")
        _run(server, people)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_networks(settings: Settings, reranker: str) -> None:
    """Opens the networks once in this process: what is wrong with them is said here, not in a server's log."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.rerankers import check_reranker

    model = Bundle.load(settings.bundle)
    check_reranker(reranker, model)
    settings.open_networks(model).close()


def prepare_gallery(settings: Settings) -> None:
    """Makes the gallery file where it is missing, and refuses one of another model before a server starts on it."""
    from gaitsdk.bundle import Bundle

    if settings.gallery is not None:
        folder = Path(settings.gallery).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                "the gallery's folder cannot be made", where=str(folder), got=str(error), fix="--gallery FILE elsewhere"
            ) from error
    settings.open_gallery(Bundle.load(settings.bundle)).close()


def _say(text: str, style: str | None = None) -> None:
    """Prints text as it is: names and paths may look like markup."""
    console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _run(server: TritonServer, people: Path) -> None:
    from gaitsdk_export.triton.server import ending

    stopping, code, reason = False, 0, ""

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        server.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with server:
            if not stopping:
                _say(f"serving at {server.grpc_url} and {server.http_url}, gallery {people}")
                code = server.wait()
            reason = server.log_tail()
    except ServerError:
        if not stopping:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not stopping:
        raise ServerError(f"tritonserver {ending(code)}", got=f"the end of its log:\n{reason}\n")
    _say("stopped")


def deploy(
    bundle: Bundle = None,
    out: Annotated[Path, typer.Option(help="Folder of the model repository; one that is there is replaced.")] = Path(
        "triton_models"
    ),
    check: Annotated[bool, typer.Option("--check", help="Only compare; exit code 1 if they differ.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences in one request.")] = 16,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks.")] = 1,
    reranker: Reranker = "cargait",
) -> None:
    """Render the Triton model repository of a bundle."""
    from gaitsdk_export.triton.repository import Options, differences, render

    options = Options(max_batch=max_batch, instances=instances, reranker=reranker)
    if not check:
        _say(f"rendered {render(bundle, out, options)}")
        return
    found = differences(bundle, out, options)
    for line in found:
        _say(line)
    if found:
        raise typer.Exit(1)
    _say(f"{out} is what rendering gives")
