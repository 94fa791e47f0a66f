"""What a person sees of a benchmark: progress while it runs, its tables, and where they are kept."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ablations.bench.base import Benchmark, run_benchmark
from ablations.bench.goal import COLUMNS
from ablations.bench.page import write_page
from memkit.registry import names, nearest

ALL, PAGE = "all", "page"
AFTERWARDS = {
    "failed": "{0} failed, as told above; what it measures is not new on the page. Again: `memkit bench {0}`.",
    "failed in part": "{0} failed in part, as told above; the page has the rest. Again: `memkit bench {0}`.",
}
"""What is said in the end of a benchmark that did not go well."""
COLOURS = {"reached": "green", "not reached": "red", "not resolved": "yellow"}


def run_asked(name: str, folder: Path, threads: int | None, out: Console, err: Console) -> bool:
    """Run a benchmark, `all` of them, or none for the `page` alone, and write the page of the folder.

    `ValueError` for an unknown name, and for a page of nothing. Of `all`, what this machine cannot run says so, and
    what failed is told with its traceback; the others run all the same. Returns whether none failed, nor any part.
    """
    known = names("benchmark")
    if name not in (*known, ALL, PAGE):
        raise ValueError(f"unknown benchmark {name!r}. {nearest(name, (*known, ALL, PAGE))}")
    if threads is not None:
        torch.set_num_threads(threads)
    ended = {}
    if name == ALL:
        ended = {one: _run_among_others(one, folder, threads, out, err) for one in known}
    elif name != PAGE:
        ended = {name: run_shown(name, folder, command_line(name, threads), out, err)}
    bad = {one: how for one, how in ended.items() if how in AFTERWARDS}
    for one, how in bad.items():
        _tell(err, AFTERWARDS[how].format(one))
    _tell(err, f"Page: {write_page(folder)}")
    return not bad


def _run_among_others(name: str, folder: Path, threads: int | None, out: Console, err: Console) -> str:
    """How a benchmark ended, as `run_shown` says: one that this machine cannot run is left out."""
    try:
        return run_shown(name, folder, command_line(name, threads), out, err)
    except ValueError as error:
        _tell(err, f"{name} was left out: {error}")
        return "left out"
    except Exception:  # whatever it is, it must not take the other benchmarks' figures with it
        _tell(err, traceback.format_exc())
        return "failed"


def run_shown(name: str, folder: Path, command: str, out: Console, err: Console) -> str:
    """Run a benchmark with a bar that says what is being timed, keep it in a folder and show it.

    Returns "done", or "failed in part" where it holds figures beside something that failed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task(name, total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(bar, description=f"{name}: {what}", completed=done, total=total)

        found = run_benchmark(name, tell, command)
    paths = found.write(folder, name)
    print_benchmark(found, out)
    for trouble in found.troubles:
        _tell(err, f"{trouble}\n{trouble.details}".rstrip())
    _tell(err, f"Saved: {', '.join(map(str, paths))}")
    return "failed in part" if found.troubles else "done"


def command_line(name: str, threads: int | None) -> str:
    """What to type to run a benchmark again."""
    return f"memkit bench {name}" + (f" --threads {threads}" if threads is not None else "")


def print_benchmark(found: Benchmark, console: Console) -> None:
    """The table of a benchmark under its title, its notes, and what was to be reached."""
    console.print(_table(found.title, found.columns, (map(escape, row) for row in found.rows)))
    console.print(escape(found.notes), style="dim", highlight=False)
    if found.goals:
        rows = ((*map(escape, goal.cells[:-1]), f"[{COLOURS[goal.verdict]}]{goal.verdict}") for goal in found.goals)
        console.print(_table("To reach", COLUMNS, rows))


def _table(title: str, columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*columns[:1], title=title, header_style="bold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _tell(console: Console, message: str) -> None:
    console.print(escape(message), highlight=False, soft_wrap=True)
