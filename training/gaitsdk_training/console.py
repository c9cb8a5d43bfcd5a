"""What the verbs of this package share: options with the same meaning everywhere, and progress bars."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from gaitsdk.rerankers import RERANKERS
from gaitsdk.runtimes import BY_NAME, RUNTIMES

Data = Annotated[
    Path, typer.Option(help="A tree <root>/<id>/<type>/<view>/ with .pkl, .npz, .npy or PNG files, or a packed file.")
]
Reranker = Annotated[str, typer.Option(help=f"{', '.join(RERANKERS)}.")]
K = Annotated[int | None, typer.Option(help="Length of the list that is re-ranked; the bundle's by default.")]
Features = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps the features, which are computed once; in the user's cache by default."),
]
Keep = Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the features on disk.")]
Runtime = Annotated[str, typer.Option(help=f"auto, {', '.join((*RUNTIMES, *BY_NAME))}.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@contextmanager
def bars(quiet: bool) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Gives `bar(name)`, which gives `update(done, total)`."""
    progress = Progress(console=Console(stderr=True), disable=quiet)

    def bar(name: str) -> Callable[[int, int], None]:
        progress.start()  # not before: a verb that is refused at once would leave an empty line
        task = progress.add_task(name, total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    try:
        yield bar
    finally:
        if progress.tasks:
            progress.stop()


@contextmanager
def stages(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Gives `show(stage, done, total)`: a bar for every stage, from when it is first heard of."""
    with bars(quiet) as bar:
        shown: dict[str, Callable[[int, int], None]] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bar(stage)
            shown[stage](done, total)

        yield show


def feature_folder(chosen: Path | None, keep: bool) -> Path | None:
    """Where features are kept: the chosen folder, else `gaitsdk/features` in the user's cache (`$XDG_CACHE_HOME` or
    `~/.cache`); None = nowhere."""
    if not keep:
        return None
    return chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaitsdk" / "features"
