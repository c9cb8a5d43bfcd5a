"""`gaitsdk serve` and `gaitsdk deploy`: a Triton server on this machine, and the model repository for another one."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gaitsdk.errors import ServerError
from gaitsdk.recognizer import default_gallery

if TYPE_CHECKING:
    from types import FrameType

    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.server import TritonServer

console = Console(stderr=True)
Bundle = Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")]


def serve(
    bundle: Bundle = None,
    gallery: Annotated[
        Path | None, typer.Option(help="The gallery's file, made where it is missing; the user's own by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. The server has no authentication.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0 = any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 = any free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 = any free one.")] = 8002,
    runtime: Annotated[str, typer.Option(help="auto, onnx, torch or torchscript.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the backbone.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks, each in a process of its own.")] = 1,
    log: Annotated[Path | None, typer.Option(help="Keep the server's log in this file.")] = None,
) -> None:
    """Serve a bundle and a gallery with a Triton server, until Ctrl-C or SIGTERM."""
    from gaitsdk_export.triton.backend import Settings
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
    prepare_gallery(settings)
    with tempfile.TemporaryDirectory(prefix="gaitsdk-models-") as folder:
        repository = render(bundle, Path(folder) / "models", Options(instances=instances))
        server = TritonServer(
            repository,
            settings,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log=log,
        )
        if host not in ("127.0.0.1", "::1", "localhost"):
            console.print("whoever reaches this address may enrol and delete: fence it with a proxy", style="yellow")
        _run(server, people)


def prepare_gallery(settings: Settings) -> None:
    """Makes the gallery file where it is missing, and refuses one of another model before a server starts on it."""
    from gaitsdk.bundle import Bundle

    if settings.gallery is not None:
        Path(settings.gallery).parent.mkdir(parents=True, exist_ok=True)
    settings.open_gallery(Bundle.load(settings.bundle)).close()


def _run(server: TritonServer, people: Path) -> None:
    stopping, code, reason = False, None, ""

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        server.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with server:
            if not stopping:
                console.print(f"serving at {server.grpc_url} and {server.http_url}, gallery {people}", highlight=False)
                code = server.wait()
            reason = server.log_tail()
    except ServerError:
        if not stopping:
            raise
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not stopping:
        raise ServerError(f"tritonserver ended by itself with code {code}", got=f"the end of its log:\n{reason}\n")
    console.print("stopped", highlight=False)


def deploy(
    bundle: Bundle = None,
    out: Annotated[Path, typer.Option(help="Folder of the model repository; one that is there is replaced.")] = Path(
        "triton_models"
    ),
    check: Annotated[bool, typer.Option("--check", help="Only compare; exit code 1 if they differ.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Sequences in one request.")] = 16,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks.")] = 1,
) -> None:
    """Render the Triton model repository of a bundle."""
    from gaitsdk_export.triton.repository import Options, differences, render

    options = Options(max_batch=max_batch, instances=instances)
    if not check:
        console.print(f"rendered {render(bundle, out, options)}", highlight=False)
        return
    found = differences(bundle, out, options)
    for line in found:
        console.print(line, highlight=False, markup=False)
    if found:
        raise typer.Exit(1)
    console.print(f"{out} is what rendering gives", highlight=False)
