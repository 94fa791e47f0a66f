"""A benchmark: a name, a table of figures, goals for them, and notes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.bench.goal import COLUMNS, Goal
from ablations.bench.machine import about
from ablations.files import read_json, write_json, write_text
from ablations.report.lines import Lines
from ablations.report.markdown import table
from memkit.registry import Factory, factory, register

Progress = Callable[[str, int, int], None]
"""Called with the name of the part being timed, the number of parts done and the total."""
KEYS = {"title", "notes", "about", "columns", "rows", "goals", "plots", "data", "troubles"}


@dataclass(frozen=True)
class Failure:
    """A failed part of a benchmark: its name, the reason in one line, and the traceback, if there is one."""

    what: str
    why: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.what} failed, and is not among these figures: {self.why}"


@dataclass(frozen=True)
class Benchmark:
    """The figures of a benchmark.

    columns, rows: the table. notes: the comparison in words. data: figures for machines. goals: figures with a value
    to reach. plots: lines to draw. about: command, machine and date. failures: parts without figures.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str
    data: dict[str, Any] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    plots: tuple[Lines, ...] = ()
    about: dict[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def markdown(self) -> str:
        """Return notes, failures, table, goals and machine as Markdown."""
        parts = [f"# {self.title}", self.notes, *(f"**{failure}**" for failure in self.failures)]
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
        kept["troubles"] = [vars(failure) for failure in self.failures]
        write_text(paths[0], self.markdown())
        write_json(paths[1], json.loads(json.dumps(kept)))
        return paths

    @classmethod
    def read(cls, path: Path) -> Benchmark | None:
        """Read a file of `write`; None for any other file."""
        kept = read_json(path)
        if isinstance(kept, dict):
            kept = {"troubles": [], **kept}  # files of older versions have none
        if not isinstance(kept, dict) or kept.keys() != KEYS:
            return None
        return cls(
            **{key: kept[key] for key in ("title", "notes", "about", "data")},
            columns=tuple(kept["columns"]),
            rows=tuple(map(tuple, kept["rows"])),
            goals=tuple(map(Goal.of, kept["goals"])),
            plots=tuple(Lines(**plot) for plot in kept["plots"]),
            failures=tuple(Failure(**failure) for failure in kept["troubles"]),
        )


def benchmark(name: str) -> Callable[[Factory], Factory]:
    """Register a function `(progress: Progress) -> Benchmark` under a name."""
    return register("benchmark", name)


def run_benchmark(name: str, progress: Progress, command: str = "") -> Benchmark:
    """Run a benchmark; `ValueError` names the nearest for an unknown name."""
    return replace(factory("benchmark", name)(progress), about=about(command or f"memkit bench {name}"))
