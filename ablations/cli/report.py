"""`memkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ablations.display.console import messages, results, say
from ablations.report import write_report
from ablations.report.table import print_table


def report(folder: Annotated[Path, typer.Argument(help="The folder of `memkit ablate`.")]) -> None:
    """Write the report of a grid again, finished or not, and show its table.

    Example:

    - `memkit report runs/quickstart`
    """
    show_report(folder)


def show_report(folder: Path) -> dict[str, Any]:
    """Write a grid's report, print its table, and return its results."""
    grid = write_report(folder)
    print_table(grid, results())
    say(messages(), f"Report: {folder / 'report.html'}")
    return grid
