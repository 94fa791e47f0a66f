"""Training runs on a console: a bar per active run, a bar for all runs, a line per finished run."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ablations.display.console import bars
from ablations.pool import Event
from ablations.run import FINISHED, RunSpec
from ablations.run_grid import Key


class RunsDisplay:
    """Progress of training runs: bars in a terminal, a line for each ended run elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._todo: dict[Key, RunSpec] = {}
        self._ended = 0
        self._bars: dict[Key, TaskID] = {}
        self._steps: dict[Key, int] = {}
        self._progress = bars(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            speed_seconds=120,
        )
        self._all = self._progress.add_task("[bold]all runs", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_start(self, todo: dict[Key, RunSpec], kept: int) -> None:
        """Show the number of runs to do, and of finished runs kept from before."""
        self._todo = todo
        steps = sum(spec.train.steps for spec in todo.values())
        self._progress.update(self._all, total=steps, visible=True, note=f"{len(todo)} runs")
        if kept:
            self.console.print(f"{kept} finished runs kept, {len(todo)} to run.")

    def on_event(self, event: Event[Key]) -> None:
        """Show a run's step and loss, or its end."""
        if event.kind == "progress":
            step, loss = event.value
            self._show(event.key, step, f"loss {loss:.3f}")
            return
        self._ended += 1
        self._show(event.key, self._todo[event.key].train.steps, "")
        self._progress.remove_task(self._bars.pop(event.key))
        self.console.print(f"[dim]{self._ended}/{len(self._todo)}[/dim] {_ending(event)}", highlight=False)

    def _show(self, key: Key, step: int, note: str) -> None:
        spec = self._todo[key]
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(escape(spec.name), total=spec.train.steps, note="")
        self._progress.update(self._bars[key], completed=step, note=note)
        self._progress.advance(self._all, step - self._steps.get(key, 0))
        self._steps[key] = step


def _ending(event: Event[Key]) -> str:
    """One line about a run at its end."""
    name = escape(f"{event.key[0]} (seed {event.key[1]})")
    if event.kind == "failed":
        return f"{name}: [red]failed: {escape(event.value)}[/red]"
    if event.value["status"] != FINISHED:
        return f"[red]{escape(event.value['message'])}[/red]"
    scores = ", ".join(f"{value:.3f} {metric}" for metric, value in event.value["held_out"].items())
    return f"{name}: [bold]{scores}[/bold], {event.value['seconds']:.0f} s of training"
