"""`gaitsdk serve`: a Triton server on this machine."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaitsdk.errors import OptionError, ServerError
from gaitsdk.recognizer import default_gallery
from gaitsdk.runtimes import BY_NAME, RUNTIMES
from gaitsdk.runtimes.addresses import is_loopback
from gaitsdk_export.deploy_cli import Bundle, MaxBatch, MaxK, MaxQueue, Reranker, batches, say

if TYPE_CHECKING:
    from types import FrameType

    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.server import TritonServer

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
    rendering: Annotated[str, typer.Option(help="portable or tensorrt, as of gaitsdk deploy.")] = "portable",
    runtime: Annotated[str, typer.Option(help=f"auto, {', '.join((*RUNTIMES, *BY_NAME))}.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the backbone.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks, each in a process of its own.")] = 2,
    max_batch: MaxBatch = None,
    max_queue: MaxQueue = 64,
    max_k: MaxK = 100,
    log: Annotated[Path | None, typer.Option(help="Keep the server's log in this file; - prints it.")] = None,
    log_format: Annotated[str, typer.Option(help="Of the models' lines in the log: json or text.")] = "json",
    audit: Annotated[
        Path | None, typer.Option(help="Add a line to this file for every enrol, identify and delete.")
    ] = None,
    audit_identities: Annotated[str, typer.Option(help="How the audit names people: hash or plain.")] = "hash",
    production: Annotated[
        bool, typer.Option("--production", help="Refuse what is fit for tests and demos only.")
    ] = False,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy asks for tokens, and nobody reaches --host but through it.")
    ] = False,
) -> None:
    """Serve a bundle and a gallery with a Triton server, until Ctrl-C or SIGTERM."""
    from gaitsdk_export.triton.audit import Audit
    from gaitsdk_export.triton.backend import Settings
    from gaitsdk_export.triton.configurations import Options
    from gaitsdk_export.triton.leftovers import make_folder
    from gaitsdk_export.triton.repository import render
    from gaitsdk_export.triton.server import TritonServer

    options = Options(
        rendering, batches(max_batch, rendering), instances, max_queue=max_queue, max_k=max_k, reranker=reranker
    )
    people = Path(default_gallery() if gallery is None else gallery).absolute()
    settings = Settings(
        bundle=None if bundle is None else str(bundle.absolute()),
        gallery=str(people),
        runtime=runtime,
        device=device,
        threads=threads,
        log_format=log_format,
        audit=None if audit is None else str(audit.absolute()),
        audit_identities=audit_identities,
    )
    fenced = behind_proxy or is_loopback(host)
    if production:
        check_production(settings, reranker, fenced=fenced)
    Audit(settings.audit).write([])  # refuses a file that cannot be written
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
            log=log if log is None else str(log),
            production=production,
        )
        prepare_gallery(settings)
        render(bundle, server.repository, options)
        if production:
            check_memory(server.repository)
        if not fenced:
            say("whoever reaches this address may enrol and delete: fence it with a proxy", style="yellow")
        _run(server, people)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_production(settings: Settings, reranker: str, *, fenced: bool) -> None:
    """Refuses a deployment that no operator should answer for.

    Raises:
        OptionError: everybody may enrol and delete, nobody can tell afterwards who did, or no answer will ever say
            "known" or "unknown". CalibrationError: the thresholds are another re-ranker's.
    """
    from gaitsdk.bundle import Bundle
    from gaitsdk.calibration import choose
    from gaitsdk.rerankers import check_reranker, list_length

    if not fenced:
        raise OptionError(
            "Triton asks nobody for a token",
            where="--host",
            expected="this machine's own address, such as 127.0.0.1",
            fix="put a proxy in front that does (deploy/), let nobody around it, and say --behind-proxy",
        )
    if settings.audit is None:
        raise OptionError(
            "nobody could tell who enrolled or deleted whom", where="--audit", got="none", fix="--audit FILE"
        )
    bundle = Bundle.load(settings.bundle)
    k = list_length(check_reranker(reranker, bundle), bundle)
    if choose(bundle.manifest.calibration, task="identify", reranker=reranker, k=k, gallery_size=0) is None:
        raise OptionError(
            'the bundle has no threshold: no answer would say "known" or "unknown"',
            where=str(bundle.path),
            fix="gaitsdk calibrate --bundle BUNDLE --data PEOPLE, who trained nothing",
        )


def check_memory(repository: Path) -> None:
    """Refuses a machine (a container) whose shared memory full batches would use up. ServerError."""
    from gaitsdk_export.triton.lint import SHARED_MEMORY, lint

    if found := lint(repository, free=shutil.disk_usage(SHARED_MEMORY).total):
        raise ServerError("would not serve well", where=str(repository), got=" ".join(map(str, found)))


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


def _run(server: TritonServer, people: Path) -> None:
    from gaitsdk_export.triton.hardening import known_holes
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
                old = f"; tritonserver {server.version} has known security holes: for tests and demos"
                holes = known_holes(server.version)
                say(f"serving at {server.grpc_url} and {server.http_url}, gallery {people}{old if holes else ''}")
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
    say("stopped")
