"""`report.md`."""

from __future__ import annotations

from typing import Any

from ablations.report.table import footnote, headline, make_table, troubles


def document(results: dict[str, Any]) -> str:
    """The report as Markdown; its figures are files beside it."""
    report, environment = results["report"], results["environment"]
    parts = [
        f"# {results['title']}",
        results["description"],
        f"**{headline(results)}**",
        _table(results),
        footnote(results),
        "\n".join(f"- {trouble}" for trouble in troubles(results)),
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


def _table(results: dict[str, Any]) -> str:
    table = make_table(results)
    ours = len(table.columns) - table.published
    titles = [*table.columns[:ours], *(f"published: {title}" for title in table.columns[ours:])]
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for line in table.lines:
        name = f"{line.cells[0]} (baseline)" if line.baseline else line.cells[0]
        cells = [name, *line.cells[1:]]
        rows.append([f"**{cell}**" for cell in cells[:2]] + cells[2:] if line.best else cells)
    rows.append([f"*{cell}*" if cell != "–" else cell for cell in table.yardstick])
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
