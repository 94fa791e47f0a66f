"""`memkit ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablations.cli.options import Imports, Out, Steps, Text
from ablations.cli.report import show_report
from ablations.display.console import messages, say
from ablations.display.runs import RunsDisplay
from ablations.grid import read_grid
from ablations.results import failed
from ablations.run_grid import run_grid


def ablate(
    grid: Annotated[str, typer.Argument(help="A shipped grid (`memkit list grid`) or a YAML file.")],
    folder: Out = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Runs at a time; default: one per core.")] = (
        None
    ),
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, instead of the grid's.")] = None,
    steps: Steps = None,
    text: Text = None,
    imports: Imports = None,
) -> None:
    """Train every variant of a grid on the same tokens, and report the differences.

    Finished runs in the folder are kept, so an interrupted grid resumes.

    Examples:

    - `memkit ablate quickstart`
    - `memkit ablate my_grid.yaml --out runs/mine --seeds 3 --jobs 4`
    - `memkit ablate quickstart --text my_novel.txt --out runs/novel`
    - `memkit ablate my_grid.yaml --import my_rule.py`
    """
    folder = folder or Path("runs") / Path(grid).stem
    text_path = None if text is None else str(text)
    read = read_grid(grid, seeds=seeds, steps=steps, text=text_path, imports=imports or [])
    try:
        with RunsDisplay(messages()) as display:
            run_grid(read, folder, jobs=jobs, on_start=display.on_start, on_event=display.on_event)
    except KeyboardInterrupt:
        say(messages(), f"Interrupted. Finished runs are kept in {folder}; the same command goes on from there.")
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed(show_report(folder)) else 0)
