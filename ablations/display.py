"""What a person sees while a grid runs: a bar for each running job and one for the whole."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ablations.pool import News
from ablations.run import FINISHED, RunSpec
from ablations.run_grid import Key


class Display:
    """Progress on a console: bars in a terminal, a line for each ended run elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._todo: dict[Key, RunSpec] = {}
        self._ended = 0
        self._bars: dict[Key, TaskID] = {}
        self._steps: dict[Key, int] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=120,
        )
        self._whole = self._progress.add_task("[bold]all runs", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, todo: dict[Key, RunSpec], kept: int) -> None:
        """Say what there is to do, and what was kept from before."""
        self._todo = todo
        steps = sum(spec.train.steps for spec in todo.values())
        self._progress.update(self._whole, total=steps, visible=True, note=f"{len(todo)} runs")
        if kept:
            self.console.print(f"{kept} finished runs kept, {len(todo)} to run.")

    def hear(self, news: News[Key]) -> None:
        """Show what happened to a run."""
        if news.kind == "news":
            step, loss = news.value
            self._show(news.key, step, f"loss {loss:.3f}")
            return
        self._ended += 1
        self._show(news.key, self._todo[news.key].train.steps, "")
        self._progress.remove_task(self._bars.pop(news.key))
        self.console.print(f"[dim]{self._ended}/{len(self._todo)}[/dim] {_ending(news)}", highlight=False)

    def _show(self, key: Key, step: int, note: str) -> None:
        spec = self._todo[key]
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(spec.name, total=spec.train.steps, note="")
        self._progress.update(self._bars[key], completed=step, note=note)
        self._progress.advance(self._whole, step - self._steps.get(key, 0))
        self._steps[key] = step


def _ending(news: News[Key]) -> str:
    """One line about a run that ended."""
    name = f"{news.key[0]} (seed {news.key[1]})"
    if news.kind == "failed":
        return f"{name}: [red]failed: {news.value}[/red]"
    if news.value["status"] != FINISHED:
        return f"[red]{news.value['message']}[/red]"
    scores = ", ".join(f"{value:.3f} {metric}" for metric, value in news.value["held_out"].items())
    return f"{name}: [bold]{scores}[/bold], {news.value['seconds']:.0f} s of training"
