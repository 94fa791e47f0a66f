"""A benchmark on a console: a bar while it runs, then its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ablations.bench.base import Benchmark, Progress
from ablations.bench.goal import COLUMNS
from ablations.display.console import bars

COLORS = {"reached": "green", "not reached": "red", "not resolved": "yellow"}


@contextmanager
def benchmark_bar(name: str, console: Console) -> Iterator[Progress]:
    """Show a bar; yields the function to move it."""
    with bars(console, TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn()) as shown:
        bar = shown.add_task(name, total=None)

        def progress(part: str, done: int, total: int) -> None:
            shown.update(bar, description=f"{name}: {part}", completed=done, total=total)

        yield progress


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """Print a benchmark's table under its title, its notes, and its goals."""
    console.print(_table(benchmark.title, benchmark.columns, (map(escape, row) for row in benchmark.rows)))
    console.print(escape(benchmark.notes), style="dim", highlight=False)
    if benchmark.goals:
        rows = ((*map(escape, goal.cells[:-1]), f"[{COLORS[goal.verdict]}]{goal.verdict}") for goal in benchmark.goals)
        console.print(_table("To reach", COLUMNS, rows))


def _table(title: str, columns: tuple[str, ...], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*columns[:1], title=title, header_style="bold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
