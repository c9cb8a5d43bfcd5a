"""`gaitsdk deploy`: the Triton model repository of a bundle, for another machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gaitsdk.errors import MissingDependencyError, OptionError
from gaitsdk.pipeline import MAX_K
from gaitsdk.rerankers import RERANKERS

if TYPE_CHECKING:
    from gaitsdk.runtimes.tensorrt_runtime import Machine

console = Console(stderr=True)
Bundle = Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")]
Reranker = Annotated[str, typer.Option(help=f"{', '.join(RERANKERS)}; with none the shortlist's order is the answer.")]


MaxBatch = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Sequences in one request; with tensorrt the engines'.")
]
MaxQueue = Annotated[
    int, typer.Option(min=1, max=1024, help="Requests that may wait for the networks; more are refused at once.")
]

MaxK = Annotated[
    int, typer.Option(min=1, max=MAX_K, help="Longest list that a request may have re-ranked; an engine has its own.")
]


def batches(asked: int | None, rendering: str) -> int:
    """`--max-batch`, or the default. OptionError where the engines have decided it."""
    from gaitsdk_export.triton.configurations import Options

    if asked is not None and rendering == "tensorrt":
        fix = "gaitsdk export --to tensorrt --batch 1:8:64 sets them"
        raise OptionError("the engines decide how large batches are", where="--max-batch", got=asked, fix=fix)
    return asked or Options.max_batch


def say(text: str, style: str | None = None) -> None:
    """Prints text as it is: names and paths may look like markup."""
    console.print(text, style=style, highlight=False, markup=False, emoji=False, soft_wrap=True)


def deploy(
    bundle: Bundle = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the model repository; other versions in it stay, all else is replaced.")
    ] = Path("triton_models"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: compare, and look for mistakes; exit code 1 if there are.")
    ] = False,
    lint: Annotated[
        bool, typer.Option("--lint", help="Only look for mistakes, in any repository; exit code 1 if there are.")
    ] = False,
    rendering: Annotated[
        str, typer.Option(help="portable (networks in Python) or tensorrt (the bundle's engines, for GPU servers).")
    ] = "portable",
    max_batch: MaxBatch = None,
    max_queue: MaxQueue = 64,
    max_k: MaxK = 100,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the networks, with tensorrt on each GPU.")] = 2,
    reranker: Reranker = "cargait",
    gpus: Annotated[str, typer.Option(help="tensorrt: GPUs to use, comma separated; all by default.")] = "",
    version_number: Annotated[int, typer.Option(min=1, help="Version to write, and to serve.")] = 1,
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="tensorrt: leave the engines out, for a repository in git.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Render the Triton model repository of a bundle."""
    from gaitsdk_export.triton.repository import Options, differences, render

    options = Options(
        rendering=rendering,
        max_batch=batches(max_batch, rendering),
        max_queue=max_queue,
        max_k=max_k,
        instances=instances,
        reranker=reranker,
        gpus=_numbers(gpus),
        version=version_number,
        weights=not without_weights,
    )
    if not (check or lint):
        rendered = str(render(bundle, out, options))
        print(json.dumps({"rendered": rendered})) if as_json else say(f"rendered {rendered}")
        return
    found = [] if lint else differences(bundle, out, options)
    found += _mistakes(out)
    if as_json:
        print(json.dumps({"repository": str(out), "mistakes": found}))
    else:
        fine = f"{out}: no mistakes" if lint else f"{out} is what rendering gives"
        for line in found or [fine]:
            say(line)
    if found:
        raise typer.Exit(1)


def _mistakes(repository: Path) -> list[str]:
    from gaitsdk_export.triton.engines import PLAN
    from gaitsdk_export.triton.lint import SHARED_MEMORY, lint

    here = _this_machine()
    if here is None and any(repository.glob(f"*/*/{PLAN}")):
        say("engines are not compared with this machine: it has no GPU with TensorRT", style="dim")
    free = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    return [str(each) for each in lint(repository, here, free)]


def _this_machine() -> Machine | None:
    """What engines have to be built for, where one could run here."""
    from gaitsdk.runtimes.tensorrt_runtime import import_tensorrt, machine
    from gaitsdk.runtimes.torch_runtime import import_torch

    try:
        trt, torch = import_tensorrt("tensorrt"), import_torch()
    except MissingDependencyError:
        return None
    return machine(trt, torch, "cuda:0") if torch.cuda.is_available() else None


def _numbers(text: str) -> tuple[int, ...]:
    parts = [each.strip() for each in text.split(",") if each.strip()]
    if not all(each.isascii() and each.isdigit() for each in parts):
        raise OptionError("no numbers of GPUs", where="--gpus", got=repr(text), expected="for example 0,1")
    return tuple(int(each) for each in parts)
