"""What a benchmark is: a name, a table of figures, and the words around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations.files import write_json, write_text
from memkit.registry import Factory, factory, register

Tell = Callable[[str, int, int], None]
"""Hears what is being timed, how much is done and of how much."""


@dataclass(frozen=True)
class Benchmark:
    """The figures of a benchmark.

    columns and rows are what is shown; data what is kept for machines; notes say what was compared and how.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: str
    data: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table and its notes."""
        lines = [f"# {self.title}", "", self.notes, "", _row(self.columns), _row(("---",) * len(self.columns))]
        return "\n".join([*lines, *map(_row, self.rows), ""])

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write `name.md` and `name.json` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.md", folder / f"{name}.json"]
        write_text(paths[0], self.markdown())
        write_json(paths[1], json.loads(json.dumps({"title": self.title, "notes": self.notes, **self.data})))
        return paths


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def benchmark(name: str) -> Callable[[Factory], Factory]:
    """Register a function `(tell) -> Benchmark` under a name."""
    return register("benchmark", name)


def run_benchmark(name: str, tell: Tell) -> Benchmark:
    """Run a benchmark; `ValueError` names the nearest one when there is none of this name."""
    return factory("benchmark", name)(tell)
