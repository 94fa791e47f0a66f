"""The table of a report as text, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from ablations.report.numbers import same_decimals, signed, size
from ablations.results import Summary, summaries


@dataclass(frozen=True)
class Line:
    """One variant: its cells, in the order of the table's columns."""

    cells: list[str]
    best: bool
    baseline: bool


@dataclass(frozen=True)
class Table:
    """Columns (first the variant's name, last the `published` ones of a paper), lines, and the yardstick's cells."""

    columns: list[str]
    lines: list[Line]
    yardstick: list[str]
    published: int


def make_table(results: dict[str, Any]) -> Table:
    """Make the table of a grid's results."""
    rows = summaries(results)
    reference = next(row.mean for row in rows if row.name == results["baseline"])
    published = results["report"]["published"] or {"columns": [], "rows": {}}
    figures = _figures(published)
    leader = winner(results, rows)
    solved = results["metric"].get("solved") is not None
    columns = [
        "variant",
        results["metric"]["name"],
        "vs baseline",
        "seeds",
        *(["solved at step"] if solved else []),
        "parameters",
        "state",
        "tokens/s",
        "time per run",
        *published["columns"],
    ]
    lines = []
    for row in rows:
        paper = figures.get(row.name, ["–"] * len(published["columns"]))
        cells = [*_cells(row, reference, len(results["seeds"]), solved), *paper]
        lines.append(Line(cells, best=row is leader, baseline=row.name == results["baseline"]))
    label, value = results["yardstick"]["label"], results["yardstick"]["value"]
    yardstick = [label, f"{value:.3f}", _difference(value, reference), *["–"] * (len(columns) - 3)]
    return Table(columns, lines, yardstick, len(published["columns"]))


def _difference(value: float | None, reference: float | None) -> str:
    return "–" if value is None or reference is None else signed(value - reference)


def _cells(row: Summary, reference: float | None, seeds: int, solved: bool) -> list[str]:
    done = len(row.values)
    return [
        row.name,
        score(row) if done else "failed" if row.failures else "not run yet",
        _difference(row.mean, reference),
        f"{done}" if done == seeds else f"{done} of {seeds}",
        *([", ".join("never" if step is None else f"{step}" for step in row.solved) or "–"] if solved else []),
        "–" if row.parameters is None else f"{row.parameters:,}",
        "–" if row.state_bytes is None else size(row.state_bytes),
        "–" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "–" if row.seconds is None else f"{row.seconds:.0f} s",
    ]


def _figures(published: dict[str, Any]) -> dict[str, list[str]]:
    """A paper's figures, every column with the decimals of its values."""
    rows = published["rows"]
    columns = []
    for values in zip(*rows.values(), strict=True):
        printed = iter(same_decimals([value for value in values if value is not None]))
        columns.append(["–" if value is None else next(printed) for value in values])
    return dict(zip(rows, map(list, zip(*columns, strict=True)), strict=True))


def best(results: dict[str, Any], rows: list[Summary]) -> Summary | None:
    """Return the variant with the best mean, or None before any run has finished."""
    done = [row for row in rows if row.mean is not None]
    choose = min if results["metric"]["direction"] == "lower" else max
    return choose(done, key=lambda row: row.mean or 0.0, default=None)


def winner(results: dict[str, Any], rows: list[Summary]) -> Summary | None:
    """Return the best variant if it leads each other one by more than the spread of either; else None."""
    leader = best(results, rows)
    return None if leader is None or rivals(leader, rows) else leader


def rivals(leader: Summary, rows: list[Summary]) -> list[str]:
    """Return the variants within the spread over seeds of the leader."""

    def near(row: Summary) -> bool:
        if row is leader or row.mean is None or leader.mean is None:
            return False
        return abs(row.mean - leader.mean) <= max(row.spread or 0.0, leader.spread or 0.0)

    return [row.name for row in rows if near(row)]


def score(row: Summary) -> str:
    """Format mean and spread over seeds."""
    spread = "" if row.spread is None else f" ± {row.spread:.3f}"
    return "–" if row.mean is None else f"{row.mean:.3f}{spread}"


def headline(results: dict[str, Any]) -> str:
    """Return the result in a sentence, then the variants within the spread of the best, and the yardstick."""
    rows = summaries(results)
    leader = best(results, rows)
    if leader is None or leader.mean is None:
        return "No run has finished yet."
    yardstick = results["yardstick"]
    lower = results["metric"]["direction"] == "lower"
    close = rivals(leader, rows)
    beaten = leader.mean < yardstick["value"] if lower else leader.mean > yardstick["value"]
    means = yardstick.get("means")  # folders of older versions have none
    return (
        f"Best of {len(rows)}: {leader.name}, {score(leader)} {results['metric']['unit']}."
        + (f" Within ± of it: {', '.join(close)}." if close else "")
        + f" For comparison, {yardstick['label']}: {yardstick['value']:.3f}"
        + (f"; {means}." if means else ".")
        + ("" if beaten else " No variant does better.")
    )


def failures(results: dict[str, Any]) -> list[str]:
    """Return one line per failed run."""
    return [failure for row in summaries(results) for failure in row.failures]


def footnote(results: dict[str, Any]) -> str:
    """Explain the columns."""
    seeds = len(results["seeds"])
    spread = f"± is the sample standard deviation over {seeds} seeds" if seeds > 1 else "One seed shows no spread"
    direction = results["metric"]["direction"]
    text = (
        f"{results['metric']['name'].capitalize()} on held-out rows after the last step, {direction} is better. "
        f"{spread}; differences of that size mean nothing. Every variant sees the same tokens. State: bytes of one "
        f"row's state after {results['length']} tokens. Tokens/s and time: training alone, one thread per run, beside "
        "the other runs."
    )
    if results["metric"].get("solved") is not None:
        text += (
            f" Solved at step: the step of the first evaluation at which {results['metric']['name']} was "
            f"{results['metric']['solved']:g} or better, one per seed."
        )
    if results["report"]["published"]:
        text += " The last columns are published figures of far larger models, to compare their order with ours."
    return text


def print_table(results: dict[str, Any], console: Console) -> None:
    """Print the table; a narrow terminal loses the last columns."""
    table = make_table(results)
    unlimited = console.options.update(max_width=10_000)
    shown = len(table.columns)
    while shown > 2 and Measurement.get(console, unlimited, _drawn(table, shown)).maximum > console.width:
        shown -= 1
    console.print(f"\n[bold]{escape(results['title'])}[/bold]", highlight=False)
    console.print(_drawn(table, shown))
    if shown < len(table.columns):
        left_out = escape(", ".join(table.columns[shown:]))
        console.print(f"[dim]Too narrow for: {left_out}. They are in the report.[/dim]", highlight=False)
    console.print(escape(headline(results)), highlight=False)
    for failure in failures(results):
        console.print(f"[red]{escape(failure)}[/red]", highlight=False)


def _drawn(table: Table, shown: int) -> RichTable:
    drawn = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    ours = len(table.columns) - table.published
    for number, column in enumerate(table.columns[:shown]):
        header = escape(column) if number < ours else f"[dim]published[/dim]\n{escape(column)}"
        drawn.add_column(header, justify="left" if number == 0 else "right", no_wrap=True)
    for line in table.lines:
        name = f"{line.cells[0]} (baseline)" if line.baseline else line.cells[0]
        drawn.add_row(*map(escape, [name, *line.cells[1:shown]]), style="bold green" if line.best else None)
    drawn.add_row(*map(escape, table.yardstick[:shown]), style="dim")
    return drawn
