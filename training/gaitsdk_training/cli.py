"""The verbs `gaitsdk train backbone`, `gaitsdk train reranker` and `gaitsdk train recipes`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gaitsdk.errors import MissingDependencyError, OptionError
from gaitsdk_training.console import AsJson, Data, bars
from gaitsdk_training.evaluate_cli import evaluate

# torch and what needs it are imported by the verbs: this module is loaded for every `gaitsdk` call.
if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk_training.backbone_config import BackboneTraining
    from gaitsdk_training.data import SequenceDataset
    from gaitsdk_training.reranker_config import RerankerTraining

__all__ = ["evaluate", "train"]

train = typer.Typer(no_args_is_help=True, help="Train a backbone, or a CarGait re-ranker for one.")

Out = Annotated[Path, typer.Option(help="The run's folder; the bundle is written there as model.gait.")]
Config = Annotated[Path | None, typer.Option(help="A YAML or JSON file with fields of the training configuration.")]
Recipe = Annotated[
    str | None, typer.Option(help="A published training configuration; gaitsdk train recipes lists them.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value for one field, name=value (augmentation.flip=0.5); any number of times."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan (network, data, steps, memory); train and write nothing.")
]
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
Precision = Annotated[str | None, typer.Option(help="What the network computes in: fp32, bf16 or fp16.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events beside log.jsonl.")]
Licence = Annotated[
    str | None, typer.Option(help="Licence of the weights, as the bundle will state it; that of --init by default.")
]
Resume = Annotated[bool, typer.Option(help="Go on with the run in --out; --no-resume refuses a folder that holds one.")]


@train.command("backbone")
def train_backbone(
    data: Data,
    out: Out,
    model: Annotated[str | None, typer.Option(help="Architecture, a name that gaitsdk.models.create takes.")] = None,
    recipe: Recipe = None,
    config: Config = None,
    settings: Settings = None,
    init: Annotated[
        Path | None,
        typer.Option(help="A bundle whose backbone is trained further: architecture and weights are taken from it."),
    ] = None,
    partition: Partition = None,
    dataset: Public = None,
    cache: Cache = None,
    validation: Validation = 0.1,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    workers: Workers = None,
    tensorboard: TensorBoard = False,
    licence: Licence = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a backbone by triplets and cross-entropy."""
    _need_training()
    from gaitsdk.bundle import Bundle
    from gaitsdk.models import model_class
    from gaitsdk_training import backbone
    from gaitsdk_training.configuration import make_config, read_values
    from gaitsdk_training.processes import is_first

    base = None if init is None else Bundle.load(init, artefacts=False)
    named = {"model": model, "steps": steps, "max_minutes": minutes, "lr": lr, "seed": seed, "device": device}
    named |= {"precision": precision, "tensorboard": tensorboard or None}
    values = read_values(config, recipe=_recipe(recipe, "backbone"), settings=settings or (), **named, workers=workers)
    values = _with_architecture(values, base)
    chosen = make_config(backbone.BackboneTraining, values, str(config or recipe or "options"))
    _check_before_reading(data, out, validation, chosen)
    reads = model_class(chosen.model)
    frame = int(reads.Options.parse(chosen.model, chosen.options).size[0]), reads.input_channels
    if dry_run:
        from gaitsdk_training.plan import listed, plan_backbone

        sets = listed(data, dataset=dataset, partition=partition, frame=frame).split(validation)
        return _show(plan_backbone(chosen, *sets), partition or dataset, as_json)
    with _interruptible(), bars(as_json or not is_first()) as bar:
        everybody = _load(data, partition, dataset, cache, frame, bar)
        training, held_out = everybody.split(validation)
        result = backbone.train_backbone(
            training, chosen, out, validation=held_out, init=base, resume=resume, progress=_steps(bar("training"))
        )
    if not is_first():
        return
    notes = {
        "data": str(data.name),
        "identities": len(training.classes),
        "sequences": len(training),
        "skipped": len(everybody.report.skipped) if everybody.report else 0,
        "steps": result.steps,
        "best_step": result.step,
        "validation_rank1": result.rank1,
    }
    if base is not None:
        notes["init"] = base.fingerprint
    licence = licence or ("not stated" if base is None else base.manifest.licence)
    bundle = Bundle.create(out / "model.gait", backbone=result.model, licence=licence, training=notes, overwrite=True)
    waiting = {"waiting_for_data_percent": round(100.0 * result.waited, 2)}
    _report({"bundle": str(bundle.path), **notes, **waiting}, result.minutes, as_json)


@train.command("reranker")
def train_reranker(
    data: Data,
    bundle: Annotated[Path, typer.Option(help="The bundle whose backbone makes the features; it stays as it is.")],
    out: Out,
    recipe: Recipe = None,
    config: Config = None,
    settings: Settings = None,
    partition: Partition = None,
    dataset: Public = None,
    cache: Cache = None,
    validation: Validation = 0.1,
    scope: Annotated[
        str, typer.Option(help="Candidates of a probe: all (as in the paper), or view_pair (one other view).")
    ] = "all",
    v: Annotated[int, typer.Option(help="Candidates per probe in the training lists.")] = 30,
    features: Annotated[
        Path | None,
        typer.Option(help="Keep the backbone's features in NAME-training.npy and NAME-validation.npy, NAME from this."),
    ] = None,
    steps: Steps = None,
    minutes: Minutes = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    tensorboard: TensorBoard = False,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights; the bundle's by default.")] = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train CarGait (--set method=classifier: its baseline) on the features of a bundle's backbone."""
    _need_training()
    from gaitsdk.bundle import Bundle
    from gaitsdk_training import reranker
    from gaitsdk_training.configuration import read_config
    from gaitsdk_training.features import cached_features
    from gaitsdk_training.lists import check_lists
    from gaitsdk_training.processes import is_first, process_device

    named = {"steps": steps, "max_minutes": minutes, "lr": lr, "seed": seed, "device": device}
    named |= {"precision": precision, "tensorboard": tensorboard or None}
    chosen = read_config(
        reranker.RerankerTraining, config, recipe=_recipe(recipe, "reranker"), settings=settings or (), **named
    )
    _check_before_reading(data, out, validation, chosen)
    check_lists(scope, v)
    base = Bundle.load(bundle)
    frame = base.size, base.manifest.input.channels
    if dry_run:
        from gaitsdk_training.plan import listed, plan_reranker

        listing = listed(data, dataset=dataset, partition=partition, frame=frame).split(validation)
        return _show(plan_reranker(chosen, base.strips, base.dims, *listing), partition or dataset, as_json)
    backbone: Any = base.build_backbone().to(process_device(chosen.device))
    with _interruptible(), bars(as_json or not is_first()) as bar:
        parts = _load(data, partition, dataset, cache, frame, bar).split(validation)
        sets = []
        for name, part in zip(("training", "validation"), parts, strict=True):
            kept = features or out / "features.npy"
            maps = cached_features(
                backbone, part, kept.with_name(f"{kept.stem}-{name}.npy"), progress=bar(f"embedding ({name})")
            )
            sets.append(
                reranker.ListSet.build(
                    maps,
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
    if not is_first():
        return
    notes = {
        "method": chosen.method,
        "steps": result.steps,
        "best_step": result.step,
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


@train.command("recipes")
def list_recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file, to begin one's own with.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the published training configurations that --recipe takes."""
    _need_training()
    from gaitsdk_training.recipes import catalogue

    if name is not None:
        text = json.dumps(catalogue.read_recipe(name)) if as_json else catalogue.recipe_text(name).rstrip()
        return typer.echo(text)
    found = {each: catalogue.recipe_about(each) for each in catalogue.recipe_names()}
    if as_json:
        return typer.echo(json.dumps(found))
    table = Table("recipe", "what it is", show_lines=True)
    for each, about in found.items():
        table.add_row(Text(each, no_wrap=True), Text(about))
    Console().print(table)


def _recipe(name: str | None, kind: str) -> str | None:
    """The name, of a recipe for that verb."""
    from gaitsdk_training.recipes.catalogue import recipe_kind

    if name is not None and recipe_kind(name) != kind:
        verb = f"gaitsdk train {recipe_kind(name)}"
        raise OptionError(
            "the recipe is for another verb", where="--recipe", got=name, expected=f"one for {kind}s", fix=f"use {verb}"
        )
    return name


def _with_architecture(values: dict[str, Any], base: Bundle | None) -> dict[str, Any]:
    """The configuration with the bundle's network, if any; one that was meant for another network is refused."""
    if base is None:
        return values
    architecture = base.manifest.architecture
    if values.get("model", architecture.name) != architecture.name:
        raise OptionError(
            "the bundle's network is another one", where="--init", got=f"{base.path}: {architecture.name}",
            expected=str(values["model"]), fix="leave --model out, or choose a recipe for that network",
        )  # fmt: skip
    return {**values, "model": architecture.name, "options": dict(architecture.options)}


def _show(plan: dict[str, Any], split: Path | str | None, as_json: bool) -> None:
    """Prints a plan; without a split, test identities would train: it says so."""
    plan = {**plan, "split": "none: every identity of the data trains or validates" if split is None else str(split)}
    if as_json:
        return typer.echo(json.dumps(plan))
    sizes = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in plan["memory"].items())
    console = Console()
    for name, value in {**plan, "memory": sizes}.items():
        shown = " x ".join(map(str, value)) if isinstance(value, list) else value
        console.print(f"{name.replace('_', ' ')}: {shown}", highlight=False, markup=False)


def _load(
    data: Path,
    partition: Path | None,
    dataset: str | None,
    cache: Path | None,
    frame: tuple[int, int],
    bar: Callable[[str], Any],
) -> SequenceDataset:
    """The data for a network whose frames are of this size and number of maps."""
    from gaitsdk_training.data import from_tree, pack

    source, (size, channels) = data, frame
    if cache is not None:
        source = pack(data, cache, size=size, channels=channels, progress=bar("packing")).path
    return from_tree(
        source, dataset=dataset, partition=partition, size=size, channels=channels, progress=bar("reading")
    )


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
        # A list is what there was before and what there is now.
        shown = [f"{each:.6g}" if isinstance(each, float) else str(each) for each in _listed(value)]
        console.print(f"{name.replace('_', ' ')}: {' -> '.join(shown)}", highlight=False, markup=False)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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


def _check_before_reading(
    data: Path, out: Path, validation: float, config: BackboneTraining | RerankerTraining
) -> None:
    """Refuses what can be told without the data, which may take minutes to read."""
    from gaitsdk_training.checkpoints import check_folder
    from gaitsdk_training.data import check_share
    from gaitsdk_training.optimising import check_precision
    from gaitsdk_training.processes import process_device
    from gaitsdk_training.scalars import check_tensorboard

    check_share(validation, "--validation")
    check_folder(out)
    if data.is_dir() and data.resolve() in (out.resolve(), *out.resolve().parents):
        # What a run writes would be read as people of that tree by the next one.
        raise OptionError(
            "the run's folder lies in the data", where=str(out), expected=f"a folder outside {data}",
            fix="choose another folder with --out",
        )  # fmt: skip
    check_precision(config.precision, process_device(config.device))
    if config.tensorboard:
        check_tensorboard()


def _need_training() -> None:
    try:
        import torch  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"training needs {error.name}", fix="pip install 'gaitsdk[train]'") from error
