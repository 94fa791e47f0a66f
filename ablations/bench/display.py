"""What a person sees of a benchmark: progress while it runs, and its table."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ablations.bench.base import Benchmark, run_benchmark


def run_shown(name: str, console: Console) -> Benchmark:
    """Run a benchmark with a bar that says what is being timed."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(name, total=None)
        return run_benchmark(
            name, lambda what, done, total: progress.update(bar, description=what, completed=done, total=total)
        )


def print_benchmark(found: Benchmark, console: Console) -> None:
    """The table of a benchmark under its title, and its notes."""
    table = Table(*found.columns[:1], title=found.title, header_style="bold")
    for column in found.columns[1:]:
        table.add_column(column, justify="right")
    for row in found.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(escape(found.notes), style="dim", highlight=False)
