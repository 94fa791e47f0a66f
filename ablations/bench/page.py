"""One page of all benchmarks in a folder: their goals, then each with its figures."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from ablations.bench.base import Benchmark
from ablations.bench.goal import COLUMNS
from ablations.files import write_text
from ablations.report.html import document, paragraph
from ablations.report.lines import draw
from ablations.report.styles import BENCHMARKS
from ablations.report.svg import tag

PAGE = "bench.html"


def write_page(folder: Path) -> Path:
    """Write `bench.html` from every benchmark in a folder; `ValueError` if there are none."""
    read = {path.stem: Benchmark.read(path) for path in sorted(folder.glob("*.json"))}
    benchmarks = {name: one for name, one in read.items() if one is not None}
    if not benchmarks:
        raise ValueError(f"{folder} holds no benchmark's figures. Write some with `memkit bench NAME --out {folder}`.")
    write_text(folder / PAGE, page(benchmarks))
    return folder / PAGE


def page(benchmarks: dict[str, Benchmark]) -> str:
    """Return the page: one file, no scripts."""
    goals = [goal for one in benchmarks.values() for goal in one.goals]
    body = [
        tag("p", "memkit bench", class_="eyebrow"),
        tag("h1", "Benchmarks"),
        paragraph(
            "Figures are ratios between systems that take turns in one run, or counts. A figure with a spread is the "
            "median, the least and the largest of the rounds. The verdict is 'not resolved' if the rounds lie on both "
            "sides of the goal."
        ),
    ]
    body += [part for one in benchmarks.values() for part in _failures(one)]
    if goals:
        body += [tag("h2", "To reach"), _table(COLUMNS, (goal.cells for goal in goals), verdicts=True)]
    for name, one in benchmarks.items():
        body.append(_section(name, one))
    return document("Benchmarks", body, BENCHMARKS)


def _failures(one: Benchmark) -> list[str]:
    return [tag("p", escape(f"{one.title}: {failure}"), class_="headline trouble") for failure in one.failures]


def _section(name: str, one: Benchmark) -> str:
    facts = tag("dl", *(tag("dt", escape(k)) + tag("dd", escape(v)) for k, v in one.about.items()), class_="facts")
    return "\n".join(
        [
            tag("h2", escape(one.title), id=name),
            paragraph(one.notes, "muted small"),
            *_failures(one),
            *(tag("figure", draw(plot)) for plot in one.plots),
            _table(one.columns, one.rows),
            facts,
        ]
    )


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]], verdicts: bool = False) -> str:
    lines = []
    for row in rows:
        cells = [tag("td", escape(cell)) for cell in row]
        if verdicts:
            *_, verdict = row
            cells[-1] = tag("td", escape(verdict), class_=verdict.replace(" ", "-"))
        lines.append(tag("tr", *cells))
    head = tag("thead", tag("tr", *(tag("th", escape(column)) for column in columns)))
    class_ = "words" if verdicts else "figures"
    return tag("div", tag("table", head, tag("tbody", *lines), class_=class_), class_="scroll")
