"""The verbs `gaitsdk train backbone`, `gaitsdk train reranker` and `gaitsdk evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from gaitsdk.errors import MissingDependencyError

# torch and what needs it are imported by the verbs: this module is loaded for every `gaitsdk` call.
if TYPE_CHECKING:
    from gaitsdk_training.data import SequenceDataset

train = typer.Typer(no_args_is_help=True, help="Train a backbone, or a CarGait re-ranker for one.")

Data = Annotated[
    Path, typer.Option(help="A tree <root>/<id>/<type>/<view>/ with .pkl, .npz, .npy or PNG files, or a packed file.")
]
Out = Annotated[Path, typer.Option(help="The run's folder; the bundle is written there as model.gait.")]
Config = Annotated[Path | None, typer.Option(help="A JSON object with fields of the training configuration.")]
Partition = Annotated[
    Path | None, typer.Option(help='{"TRAIN_SET": [ids], "TEST_SET": [ids]}; without it all identities are used.')
]
Public = Annotated[
    str | None,
    typer.Option("--dataset", help="casiab, oumvlp, gait3d or grew: names are checked, its split is taken."),
]
Cache = Annotated[Path | None, typer.Option(help="Pack the tree into this file first (once), and read that.")]
Workers = Annotated[int | None, typer.Option(help="Threads that load batches ahead.")]
Validation = Annotated[float, typer.Option(help="Share of the training identities that validate (the last ones).")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so many minutes.")]
Rate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")]
Licence = Annotated[str, typer.Option(help="Licence of the weights, as the bundle will state it.")]
Resume = Annotated[bool, typer.Option(help="Go on with the run in --out; --no-resume refuses a folder that holds one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@train.command("backbone")
def train_backbone(
    data: Data,
    out: Out,
    model: Annotated[str | None, typer.Option(help="Architecture, a name that gaitsdk.models.create takes.")] = None,
    config: Config = None,
    partition: Partition = None,
    dataset: Public = None,
    cache: Cache = None,
    validation: Validation = 0.1,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    licence: Licence = "not stated",
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Train a backbone by triplets and cross-entropy."""
    _need_torch()
    from gaitsdk.bundle import Bundle
    from gaitsdk.models import model_class
    from gaitsdk_training import backbone
    from gaitsdk_training.configuration import read_config
    from gaitsdk_training.features import pick_device

    chosen = read_config(
        backbone.BackboneTraining,
        config,
        model=model,
        steps=steps,
        max_minutes=minutes,
        lr=lr,
        seed=seed,
        device=device,
        workers=workers,
    )
    _check_before_reading(out, validation)
    pick_device(chosen.device)  # an impossible one is refused before the data are read
    size = int(model_class(chosen.model).Options.parse(chosen.model, chosen.options).size[0])
    with _interruptible(), _bars(as_json) as bar:
        everybody = _load(data, partition, dataset, cache, size, bar)
        training, held_out = everybody.split(validation)
        result = backbone.train_backbone(
            training, chosen, out, validation=held_out, resume=resume, progress=_steps(bar("training"))
        )
    notes = {
        "data": str(data.name),
        "identities": len(training.classes),
        "sequences": len(training),
        "skipped": len(everybody.report.skipped) if everybody.report else 0,
        "steps": result.step,
        "validation_rank1": result.rank1,
    }
    bundle = Bundle.create(out / "model.gait", backbone=result.model, licence=licence, training=notes, overwrite=True)
    _report({"bundle": str(bundle.path), **notes}, result.minutes, as_json)


@train.command("reranker")
def train_reranker(
    data: Data,
    bundle: Annotated[Path, typer.Option(help="The bundle whose backbone makes the features; it stays as it is.")],
    out: Out,
    config: Config = None,
    partition: Partition = None,
    dataset: Public = None,
    cache: Cache = None,
    validation: Validation = 0.1,
    scope: Annotated[
        str, typer.Option(help="Candidates of a probe: all (as in the paper), or view_pair (one other view).")
    ] = "all",
    v: Annotated[int, typer.Option(help="Candidates per probe in the training lists.")] = 30,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights; the bundle's by default.")] = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Train CarGait on the features of a bundle's backbone."""
    _need_torch()
    from gaitsdk.bundle import Bundle
    from gaitsdk_training import reranker
    from gaitsdk_training.configuration import read_config
    from gaitsdk_training.features import embed_dataset, pick_device

    chosen = read_config(
        reranker.RerankerTraining, config, steps=steps, max_minutes=minutes, lr=lr, seed=seed, device=device
    )
    _check_before_reading(out, validation)
    base = Bundle.load(bundle)
    backbone: Any = base.build_backbone().to(pick_device(chosen.device))
    with _interruptible(), _bars(as_json) as bar:
        parts = _load(data, partition, dataset, cache, base.size, bar).split(validation)
        sets = []
        for name, part in zip(("embedding", "embedding (validation)"), parts, strict=True):
            features = embed_dataset(backbone, part, progress=bar(name))
            sets.append(
                reranker.ListSet.build(
                    features,
                    part.identities,
                    part.types,
                    part.views,
                    v=v,
                    scope=scope,
                    metric=base.metric,
                    seed=chosen.seed,
                )
            )
        result = reranker.train_reranker(sets[0], sets[1], chosen, out, resume=resume, progress=_steps(bar("training")))
    notes = {
        "steps": result.step,
        "lists": len(sets[0].lists),
        "validation_loss": [result.initial_loss, result.loss],
        "validation_rank1": [result.initial_rank1, result.rank1],
    }
    written = Bundle.create(
        out / "model.gait",
        backbone=backbone,
        reranker=result.model,
        k=chosen.k,
        licence=licence or base.manifest.licence,
        training={**base.manifest.training, "reranker": notes},
        overwrite=True,
    )
    _report({"bundle": str(written.path), **notes}, result.minutes, as_json)


def evaluate(
    data: Data,
    out: Annotated[Path | None, typer.Argument(help="Write the figures to this file, as JSON.")] = None,
    protocol: Annotated[str, typer.Option(help="casiab.")] = "casiab",
    bundle: Annotated[Path | None, typer.Option(help="A bundle NAME.gait; the shipped one by default.")] = None,
    reranker: Annotated[str, typer.Option(help="cargait or none.")] = "cargait",
    k: Annotated[
        int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")
    ] = None,
    partition: Annotated[
        Path | None, typer.Option(help="Evaluate its TEST_SET; without it all identities of the tree.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto, onnx, torch or torchscript.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a bundle by an official protocol, before and after re-ranking."""
    from gaitsdk.bundle import Bundle
    from gaitsdk.datasets import Partition as Split
    from gaitsdk_training.evaluation.tree import evaluate_tree

    identities = None if partition is None else Split.read(partition).test
    with _bars(as_json) as bar:
        bars: dict[str, Callable[[int, int], None]] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = bar(stage)
            bars[stage](done, total)

        report = evaluate_tree(
            data,
            Bundle.load(bundle),
            protocol=protocol,
            identities=identities,
            reranker=reranker,
            k=k,
            runtime=runtime,
            device=device,
            progress=show,
        )
    if out is not None:
        _write(out, report)
    if as_json and out is None:
        typer.echo(json.dumps(report))
    elif not as_json:
        _print(report)


def _write(path: Path, report: dict[str, Any]) -> None:
    from gaitsdk.errors import OptionError

    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise OptionError("the figures cannot be written", where=str(path), got=str(error)) from error


def _print(report: dict[str, Any]) -> None:
    figures, reranked = report["figures"], report["reranker"] != "none"
    about = (
        f"{report['sequences']} sequences; {report['runtime']} on {report['device']}, re-ranker {report['reranker']}"
    )
    # Text and not markup: names of folders and runtimes may hold brackets.
    table = Table(title=Text(f"{report['protocol']}, identical views excluded, percent"), caption=Text(about))
    columns = {"Rank-1": "rank1", "Rank-5": "rank5"}
    if reranked:
        columns = {
            name: key
            for rank in (1, 5)
            for name, key in ((f"Rank-{rank} initial", f"rank{rank}_initial"), (f"Rank-{rank}", f"rank{rank}"))
        }
    table.add_column("condition")
    for name in columns:
        table.add_column(name, justify="right")
    conditions = [key.removeprefix("rank1/") for key in figures if key.startswith("rank1/") and key.count("/") == 1]
    for condition in conditions:
        table.add_row(Text(condition), *(f"{figures[f'{key}/{condition}']:.2f}" for key in columns.values()))
    table.add_row("mean", *(f"{figures[key]:.2f}" for key in columns.values()))
    console = Console()
    console.print(table)
    if gain := report["gain"]:
        interval = f"95 % interval {gain['low']:+.2f} to {gain['high']:+.2f}"
        console.print(f"Rank-1 gain over all rankings {gain['mean']:+.2f} points, {interval}", highlight=False)
    if report["missing"]:
        missing = ", ".join(report["missing"])
        console.print(f"identities of the partition that the tree has not: {missing}", highlight=False, markup=False)
    for each in report["skipped"]:
        console.print(f"skipped {each['sequence']}: {each['reason']}", highlight=False, markup=False)


def _load(
    data: Path, partition: Path | None, dataset: str | None, cache: Path | None, size: int, bar: Callable[[str], Any]
) -> SequenceDataset:
    from gaitsdk_training.data import from_tree, pack

    source = data
    if cache is not None:
        source = pack(data, cache, size=size, progress=bar("packing")).path
    return from_tree(source, dataset=dataset, partition=partition, size=size, progress=bar("reading"))


@contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives `bar(name)`, which gives `update(done, total)`."""
    with Progress(console=Console(stderr=True), disable=quiet) as progress:

        def bar(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar


def _steps(update: Callable[[int, int], None]) -> Callable[[float, dict[str, Any]], None]:
    """A loop's progress as one of 1000 parts."""
    return lambda share, report: update(round(1000 * min(share, 1.0)), 1000)


def _report(values: dict[str, Any], minutes: float, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**values, "minutes": round(minutes, 4)}))
        return
    console = Console()
    time = f"{60 * minutes:.1f} s" if minutes < 2 else f"{minutes:.1f} min"
    for name, value in {**values, "time": time}.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False, markup=False)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the verb with exit code 130 and one line that says what is kept."""
    from gaitsdk_training.interruption import TrainingStopped

    try:
        yield
    except KeyboardInterrupt as stopped:
        step = stopped.step if isinstance(stopped, TrainingStopped) else None
        what = "stopped, no checkpoint was written now" if step is None else f"stopped at step {step}"
        typer.echo(f"{what}; run the same command to go on", err=True)
        raise typer.Exit(130) from stopped


def _check_before_reading(out: Path, validation: float) -> None:
    from gaitsdk_training.checkpoints import check_folder
    from gaitsdk_training.data import check_share

    check_share(validation, "--validation")
    check_folder(out)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("training needs PyTorch", fix="pip install 'gaitsdk[train]'") from error
