"""`report.md`, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ablations.report.table import failures, footnote, headline, make_table


def document(results: dict[str, Any]) -> str:
    """Return the report as Markdown; its figures are files beside it."""
    report, environment = results["report"], results["environment"]
    parts = [
        f"# {results['title']}",
        results["description"],
        f"**{headline(results)}**",
        _results_table(results),
        footnote(results),
        "\n".join(f"- {failure}" for failure in failures(results)),
        "![Every variant and seed](variants.svg)",
        "![Learning curves](curves.svg)",
        report["notes"],
        f"Source: {report['source']}" if report["source"] else "",
        "## What was run",
        ", ".join(f"{name} {value}" for name, value in environment.items())
        + f"; seeds {', '.join(map(str, results['seeds']))}; tokens {results['token_digest']}.",
        f"```yaml\n{results['text']}```",
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> str:
    """Return a Markdown table, pipes in its cells escaped.

    numbers: align all columns but the first to the right.
    """
    head = list(columns)
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(map(_row, [head, rule, *rows]))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _results_table(results: dict[str, Any]) -> str:
    made = make_table(results)
    ours = len(made.columns) - made.published
    titles = [*made.columns[:ours], *(f"published: {title}" for title in made.columns[ours:])]
    rows = []
    for line in made.lines:
        name = f"{line.cells[0]} (baseline)" if line.baseline else line.cells[0]
        cells = [name, *line.cells[1:]]
        rows.append([f"**{cell}**" for cell in cells[:2]] + cells[2:] if line.best else cells)
    rows.append([f"*{cell}*" if cell != "–" else cell for cell in made.yardstick])
    return table(titles, rows, numbers=True)
