"""`memkit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablations.bench import command
from ablations.cli.options import Out
from ablations.display.console import messages, results


def bench(
    name: Annotated[
        str, typer.Argument(help="One of `memkit list benchmark`; `all`; or `page`: only the page.")
    ] = "rules",
    folder: Out = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch; default: one per core.")] = None,
) -> None:
    """Time things against each other on this machine, and keep the figures as JSON, Markdown and a page with plots.

    The page, `bench.html`, shows every benchmark in the folder. If one benchmark of `all` fails, or one model of
    `stream`, the others still run, and the exit code is 1.

    Examples:

    - `memkit bench rules`
    - `memkit bench rounds --threads 1 --out runs/bench`
    - `memkit bench page --out runs/bench`
    """
    good = command.bench(name, folder or Path("runs") / "bench", threads, results(), messages())
    raise typer.Exit(0 if good else 1)
