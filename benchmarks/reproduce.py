"""The tables of the two papers, CarGait (Habib et al.) and GaitMPL (Dou et al.): their numbers beside ours.

    python benchmarks/reproduce.py list
    python benchmarks/reproduce.py cargait-1 --data ROOT [--seeds 3] [--work FOLDER] [--bundles FOLDER]
    python benchmarks/reproduce.py gaitmpl-III --tiny

ROOT holds the licensed data sets, a folder each (`list` says which a table needs, from whom, and what their trees look
like). What a row needs is trained by the published recipes, below --work; a command that was stopped goes on there, and
tables share their runs. A row whose data set is missing is marked so, and so are other people's methods. With --tiny
every row of ours runs on synthetic walkers with networks of a few thousand weights, in a minute or two: that proves
the command and measures nothing. Figures go to benchmarks/results/reproduce/TABLE.json (TABLE-tiny.json).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable
from rich.text import Text
from tables import report
from tables.datasets import LICENSED, Data
from tables.measuring import FAILED, Measurer, machine
from tables.specification import read_table, table_names
from tables.tiny import tiny_root
from tables.training import Trainer

from gaitsdk.errors import GaitError

#: Trained runs and packed data; runs/ is not under version control.
WORK = Path("runs") / "reproduce"
console = Console(soft_wrap=False)


def list_tables() -> None:
    """What there is, how much of it is ours to run, and what it needs."""
    shown = RichTable("table", "what it is", "rows", "trainings", "needs")
    for name in table_names():
        table = read_table(name)
        ours = sum(any(row.cells) for row in table.rows)
        networks = {(c.dataset, c.backbone, str(c.training), c.more_steps) for c in table.cells() if c.backbone}
        needs = ", ".join(LICENSED[each].title for each in table.datasets()) or "nothing"
        shown.add_row(name, Text(table.title), f"{ours} of {len(table.rows)}", str(len(networks)), needs)
    console.print(shown)
    for each in LICENSED.values():
        console.print(Text(f"* {each.needs}"))


def reproduce(options: argparse.Namespace) -> int:
    """Runs one table; gives the exit code."""
    table = read_table(options.table)
    if options.rows is not None:
        table = table.restricted(options.rows)
    started = time.perf_counter()
    root = tiny_root(options.work / "tiny", table.datasets()) if options.tiny else options.data
    outcomes: dict[tuple[int, int], Any] = {}
    with contextlib.ExitStack() as stack:
        if options.tiny:  # how few identities a tiny data set has is no news
            logger = logging.getLogger("gaitsdk_training.data")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        progress = _bars(stack)
        work = options.work / "tiny" if options.tiny else options.work
        trainer = Trainer(
            Data(root, work, progress), work, tiny=options.tiny, device=options.device, bundles=options.bundles,
            progress=progress,
        )  # fmt: skip
        measurer = Measurer(trainer, seeds=options.seeds, scope=options.scope)
        path = options.out or (report.results_path(table.name, options.tiny) if options.rows is None else None)
        about: dict[str, Any] = {
            "comparable": not options.tiny,
            "remark": report.TINY if options.tiny else "",
            "command": _command(options),
            "machine": machine(),
            "seeds": list(range(options.seeds)),
            "scope": options.scope,
            "notes": list(table.notes),
        }
        for row, column, outcome in measurer.table(table):
            outcomes[row, column] = outcome
            about["minutes"] = round((time.perf_counter() - started) / 60.0, 2)
            about["cpu_minutes"] = round(sum(os.times()[:4]) / 60.0, 2)
            if outcome.by_seed and path is not None:
                report.write(path, report.document(table, outcomes, about))
    report.show(console, table, outcomes, options.tiny)
    measured = sum(bool(each.by_seed) for each in outcomes.values())
    failed = sum(each.status == FAILED for each in outcomes.values())
    where = f"; written to {path}" if measured and path is not None else ""
    console.print(Text(f"{measured} of {len(outcomes)} numbers measured, {failed} failed{where}"))
    return 1 if failed else 0


def _bars(stack: contextlib.ExitStack) -> Callable[[str], Callable[[int, int], None]]:
    """Gives a bar for each title, on the error stream, gone when it is full."""
    shown = stack.enter_context(Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()))
    tasks: dict[str, Any] = {}

    def bar(title: str) -> Callable[[int, int], None]:
        def update(done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, total=total)
            shown.update(tasks[title], completed=done, total=total, visible=done < total)

        return update

    return bar


def _command(options: argparse.Namespace) -> str:
    """As it was called, without this machine's paths."""
    given = {
        " --data ROOT": options.data is not None and not options.tiny,
        " --tiny": options.tiny,
        f" --seeds {options.seeds}": options.seeds > 1,
        " --bundles FOLDER": options.bundles is not None,
        f" --scope {options.scope}": options.scope != "list",
        f" --rows {options.rows}": options.rows is not None,
    }
    chosen = "".join(text for text, is_given in given.items() if is_given)
    return f"python benchmarks/reproduce.py {options.table}{chosen}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", help=f"list, or one of {', '.join(table_names())}")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="the folder of the data sets' folders")
    parser.add_argument("--tiny", action="store_true", help="prove the command on synthetic walkers")
    parser.add_argument("--seeds", type=int, default=1, help="train everything so many times (default %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="runs and packed data (default %(default)s)")
    parser.add_argument("--bundles", type=Path, help="imported checkpoints BACKBONE-DATASET.gait, taken as they are")
    parser.add_argument(
        "--scope", choices=("list", "full"), default="list", help="what re-rankers without weights see (%(default)s)"
    )
    parser.add_argument("--rows", metavar="TEXT", help="only rows with this in their label; no figures but to --out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--out", type=Path, help="write the figures to this file instead")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    try:
        if options.table == "list":
            list_tables()
            return 0
        return reproduce(options)
    except GaitError as error:
        console.print(Text(str(error)), style="red")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130


if __name__ == "__main__":
    sys.exit(main())
