"""The two streams of the command line: results to stdout, progress and messages to stderr."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, ProgressColumn

PIPED_WIDTH = 200  # columns of a table for a file or another program


def results(piped_width: int = PIPED_WIDTH) -> Console:
    """Return the console of results, often a file or another program."""
    return Console() if sys.stdout.isatty() else Console(width=piped_width)


def messages() -> Console:
    """Return the console of progress and messages."""
    return Console(stderr=True)


def say(console: Console, message: str) -> None:
    """Print plain text, without markup and without line breaks of its own."""
    console.print(escape(message), highlight=False, soft_wrap=True)


def say_error(console: Console, message: str, *, soft_wrap: bool = True) -> None:
    """Print an error message."""
    console.print(f"[bold red]Error:[/bold red] {escape(message)}", highlight=False, soft_wrap=soft_wrap)


def bars(console: Console, *columns: ProgressColumn, speed_seconds: float = 30) -> Progress:
    """Progress bars in a terminal, nothing elsewhere; they vanish at the end.

    speed_seconds: the time left is estimated from so many last seconds.
    """
    return Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        speed_estimate_period=speed_seconds,
    )
