"""Verdicts of a check: a line per law; for a broken law its equation, the finding, and a command to see it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ablations.checking.request import CheckRequest
from ablations.display.console import bars, say_error
from memkit.testing.report import Verdict, repeated

WORDS = {"passed": "passed", "failed": "FAILED", "does not apply": "not applicable", "exempt": "exempt"}
COLORS = {"passed": "green", "failed": "bold red", "does not apply": "dim", "exempt": "yellow"}


class CheckBar:
    """Progress on a console: a bar in a terminal, a line at every tenth of a long check elsewhere."""

    LONG = 200  # units of a long check, at least

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done, self.broken = console, total, 0, 0
        self._progress = bars(
            console,
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while results are printed on the same terminal, through another stream."""
        self._progress.stop()
        yield
        self._progress.start()

    def advance(self, unit: str, broken: bool) -> None:
        """Count one more unit of work."""
        self.done += 1
        self.broken += broken
        self._progress.update(self._task, advance=1, description=escape(unit[:36]))
        tenth = self.total >= self.LONG and self.done * 10 // self.total > (self.done - 1) * 10 // self.total
        if tenth and not self.console.is_terminal:
            self.console.print(f"{self.done}/{self.total} parts done, {self.broken} broken", highlight=False)


def print_unusable(refused: Mapping[str, str], console: Console) -> None:
    """Print the error of each unusable component."""
    for message in refused.values():
        say_error(console, message, soft_wrap=False)


def print_verdicts(
    component: str,
    options: Mapping[str, object],
    verdicts: Sequence[Verdict],
    request: CheckRequest,
    several: bool,
    console: Console,
) -> None:
    """Print one component with its options, and its laws in order."""
    console.print(f"[bold]{escape(component)}[/bold], {_effort(request)}", highlight=False)
    if options:
        made = ", ".join(f"{key}={value!r}" for key, value in options.items())
        console.print(Padding(f"[dim]made with {escape(made)}[/dim]", (0, 0, 0, 2)), highlight=False)
    again = repeated(verdicts)
    for verdict in verdicts:
        first = again.get(verdict.law)
        _print_verdict(verdict, f"it raised the same as for {first!r}" if first else "", console)
        if verdict.status == "failed" and first is None:
            _print_failure(component, verdict, request, several, console)
    console.print()


def _print_verdict(verdict: Verdict, note: str, console: Console) -> None:
    row = Table.grid(padding=(0, 2))
    for width in (14, 25, None):
        row.add_column(width=width)
    color = COLORS[verdict.status]
    if not note:
        note = verdict.detail if verdict.status in ("does not apply", "exempt") else _tried(verdict)
    row.add_row(f"[{color}]{WORDS[verdict.status]}[/{color}]", escape(verdict.law), f"[dim]{escape(note)}[/dim]")
    console.print(Padding(row, (0, 0, 0, 2)), highlight=False)


def _print_failure(component: str, verdict: Verdict, request: CheckRequest, several: bool, console: Console) -> None:
    """Print the law's equation, the finding, a hint, and a command to see the example again."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", width=10)
    rows.add_column()
    rows.add_row("law", escape(" ".join(verdict.equation.split())))
    found = verdict.detail.removeprefix(f"law {verdict.law!r}: ")
    rows.add_row("found", f"[red]{escape(found)}[/red]")
    if verdict.hint:
        rows.add_row("look at", escape(verdict.hint))
    if verdict.example is not None:
        rows.add_row("example", f"{escape(str(verdict.example)) or 'the smallest there is'}; to see it again:")
    console.print(Padding(rows, (0, 0, 0, 6)), highlight=False)
    if verdict.example is not None:
        again = _command(component, verdict, request, several)
        console.print(f"      [bold]{escape(again)}[/bold]", highlight=False, soft_wrap=True)
    console.print()


def _command(component: str, verdict: Verdict, request: CheckRequest, several: bool) -> str:
    """The command to run an example again."""
    kind, _, name = component.partition(" ")
    parts = ["memkit check", *(name if what == "all" else shlex.quote(what) for what in request.what)]
    if several or request.kind:
        parts.append(f"--kind {kind}")
    parts += [f"--option {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in request.options.items()]
    return " ".join([*parts, f"--law {_quoted(verdict.law)}", f"--example {_quoted(str(verdict.example))}"])


def _quoted(text: str) -> str:
    return f'"{text}"' if not text.isalnum() else text


def print_summary(
    verdicts: Sequence[Verdict], refused: Mapping[str, str], request: CheckRequest, seconds: float, console: Console
) -> None:
    """Print the number of laws kept and broken, the number of examples and the time."""
    statuses = [verdict.status for verdict in verdicts]
    counts = [
        f"[{COLORS[status]}]{statuses.count(status)} {WORDS[status]}[/{COLORS[status]}]"
        for status in WORDS
        if status in statuses
    ]
    if refused:
        counts.append(f"[bold red]{len(refused)} could not be used[/bold red]")
    examples = sum(verdict.examples for verdict in verdicts)
    console.print(
        f"{', '.join(counts) or 'Nothing was tried.'}: {examples} examples in {_time(seconds)}, {_effort(request)}.",
        highlight=False,
    )


def _effort(request: CheckRequest) -> str:
    if request.example is not None:
        return "one example"
    shard = f", shard {request.shard}" if request.shard else ""
    return f"profile {escape(request.profile)}, seed {request.seed}{shard}"


def _tried(verdict: Verdict) -> str:
    nothing = f" ({verdict.discarded} say nothing)" if verdict.discarded else ""
    return f"{verdict.examples} example{'s' * (verdict.examples != 1)}{nothing}, {_time(verdict.seconds)}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
