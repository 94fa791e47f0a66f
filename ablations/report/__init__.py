"""Reports of a grid's results: a table in the terminal, `report.md`, `report.html` and its two figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablations.files import write_text
from ablations.report.figures import curves, dots, standalone
from ablations.report.html import page
from ablations.report.markdown import document
from ablations.results import collect


def write_report(out: Path) -> dict[str, Any]:
    """Write every report of a grid's folder, finished or not, and return its results."""
    results = collect(out)
    write_text(out / "variants.svg", standalone(dots(results)))
    write_text(out / "curves.svg", standalone(curves(results)))
    write_text(out / "report.md", document(results))
    write_text(out / "report.html", page(results))
    return results
