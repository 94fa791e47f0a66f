"""What a benchmark is: a name, a table of figures, what they are to reach, and the words around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.bench.goal import COLUMNS, Goal
from ablations.bench.machine import about
from ablations.files import read_json, write_json, write_text
from ablations.report.lines import Lines
from memkit.registry import Factory, factory, register

Tell = Callable[[str, int, int], None]
"""Hears what is being timed, how much is done and of how much."""
KEYS = {"title", "notes", "about", "columns", "rows", "goals", "plots", "data", "troubles"}


@dataclass(frozen=True)
class Trouble:
    """A part of a benchmark that failed: what, why in a line, and the traceback, if there is one."""

    what: str
    why: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.what} failed, and is not among these figures: {self.why}"


@dataclass(frozen=True)
class Benchmark:
    """The figures of a benchmark.

    columns and rows are what is shown; notes say what was compared and how; data is what is kept for machines.
    goals: figures that are to reach something. plots: what is drawn. about: command, machine and date. troubles: what
    failed beside them.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str
    data: dict[str, Any] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    plots: tuple[Lines, ...] = ()
    about: dict[str, str] = field(default_factory=dict)
    troubles: tuple[Trouble, ...] = ()

    def markdown(self) -> str:
        """The table and its notes, what was to be reached, and where it ran."""
        parts = [f"# {self.title}", self.notes, *(f"**{trouble}**" for trouble in self.troubles)]
        parts.append(table(self.columns, self.rows))
        if self.goals:
            parts.append(table(COLUMNS, (goal.cells for goal in self.goals)))
        parts.append("; ".join(f"{name}: {value}" for name, value in self.about.items()))
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write `name.md` and `name.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.md", folder / f"{name}.json"]
        kept = {key: getattr(self, key) for key in ("title", "notes", "about", "columns", "rows", "data")}
        kept["goals"] = [goal.data() for goal in self.goals]
        kept["plots"] = [vars(plot) for plot in self.plots]
        kept["troubles"] = [vars(trouble) for trouble in self.troubles]
        write_text(paths[0], self.markdown())
        write_json(paths[1], json.loads(json.dumps(kept)))
        return paths

    @classmethod
    def read(cls, path: Path) -> Benchmark | None:
        """What `write` wrote; None for a file of something else."""
        kept = read_json(path)
        if isinstance(kept, dict):
            kept = {"troubles": [], **kept}  # written before benchmarks told of any
        if not isinstance(kept, dict) or kept.keys() != KEYS:
            return None
        return cls(
            **{key: kept[key] for key in ("title", "notes", "about", "data")},
            columns=tuple(kept["columns"]),
            rows=tuple(map(tuple, kept["rows"])),
            goals=tuple(map(Goal.of, kept["goals"])),
            plots=tuple(Lines(**plot) for plot in kept["plots"]),
            troubles=tuple(Trouble(**trouble) for trouble in kept["troubles"]),
        )


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(columns)
    return "\n".join(map(_row, [head, ["---"] * len(head), *rows]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def benchmark(name: str) -> Callable[[Factory], Factory]:
    """Register a function `(tell) -> Benchmark` under a name."""
    return register("benchmark", name)


def run_benchmark(name: str, tell: Tell, command: str = "") -> Benchmark:
    """Run a benchmark; `ValueError` names the nearest one when there is none of this name."""
    return replace(factory("benchmark", name)(tell), about=about(command or f"memkit bench {name}"))
