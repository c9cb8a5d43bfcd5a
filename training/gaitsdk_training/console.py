"""What the verbs of this package share: options with the same meaning everywhere, and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

Data = Annotated[
    Path, typer.Option(help="A tree <root>/<id>/<type>/<view>/ with .pkl, .npz, .npy or PNG files, or a packed file.")
]
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
