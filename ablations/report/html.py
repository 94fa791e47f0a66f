"""`report.html`: one file without scripts or links, for light and dark screens and for paper."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from ablations.report.figures import curves, dots
from ablations.report.styles import FIGURES, PAGE, THEME
from ablations.report.svg import tag
from ablations.report.table import failures, footnote, headline, make_table


def page(results: dict[str, Any]) -> str:
    """Return the whole page."""
    report = results["report"]
    body = [
        tag("p", "memkit ablation", class_="eyebrow"),
        tag("h1", escape(results["title"])),
        paragraph(results["description"]),
        tag("p", escape(headline(results)), class_="headline"),
        *(tag("p", escape(failure), class_="headline trouble") for failure in failures(results)),
        tag("h2", "Every variant, every seed"),
        paragraph("Large dots are means, small ones seeds; the bar spans the seeds.", "muted small"),
        tag("figure", dots(results)),
        tag("h2", "Numbers"),
        tag("div", _table(results), class_="scroll"),
        paragraph(footnote(results), "muted small"),
        tag("h2", "Learning curves"),
        paragraph("Mean over seeds; the band spans them. Point at a curve to single it out.", "muted small"),
        tag("figure", curves(results)),
        _notes(report),
        tag("h2", "What was run"),
        _facts(results),
        tag("details", tag("summary", "The grid"), tag("pre", escape(results["text"]))),
    ]
    return document(results["title"], body)


def document(title: str, body: list[str], style: str = "") -> str:
    """Return a complete page: a title, the body's markup, and further style."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", escape(title)),
        tag("style", THEME + FIGURES + PAGE + style),
    ]
    html = tag("html", tag("head", *head), "\n", tag("body", tag("main", "\n".join(body))), lang="en")
    return f"<!doctype html>\n{html}\n"


def paragraph(content: str, class_: str = "") -> str:
    """Return a paragraph of plain text, with `code` in backquotes; nothing for an empty text."""
    return tag("p", re.sub("`([^`]+)`", r"<code>\1</code>", escape(content)), class_=class_) if content else ""


def _notes(report: dict[str, Any]) -> str:
    source = f"Source: {report['source']}" if report["source"] else ""
    if not (report["notes"] or source):
        return ""
    return tag("h2", "Notes") + paragraph(report["notes"]) + paragraph(source, "muted small")


def _table(results: dict[str, Any]) -> str:
    table = make_table(results)
    ours = len(table.columns) - table.published
    classes = [""] * ours + ["paper first", *["paper"] * table.published][: table.published]
    groups = ""
    if table.published:
        published = tag("th", "published", colspan=table.published, class_="paper first group")
        groups = tag("tr", tag("th", "", colspan=ours), published)
    titles = [tag("th", escape(title), class_=kind) for title, kind in zip(table.columns, classes, strict=True)]
    lines = []
    for line in table.lines:
        label = tag("span", "baseline", class_="tag") if line.baseline else ""
        name, *rest = map(escape, line.cells)
        cells = [tag("td", cell, class_=kind) for cell, kind in zip([name + label, *rest], classes, strict=True)]
        lines.append(tag("tr", *cells, class_="best" if line.best else "variant"))
    cells = [tag("td", escape(cell), class_=kind) for cell, kind in zip(table.yardstick, classes, strict=True)]
    lines.append(tag("tr", *cells, class_="yardstick"))
    return tag("table", tag("thead", groups, tag("tr", *titles)), tag("tbody", *lines))


def _facts(results: dict[str, Any]) -> str:
    definition, environment = results["definition"], results["environment"]
    facts = {
        "task": _pairs(definition["task"]),
        "training": _pairs(definition["train"]),
        "seeds": ", ".join(map(str, results["seeds"])),
        "digest of the tokens": results["token_digest"],
        **environment,
    }
    return tag("dl", *(tag("dt", escape(k)) + tag("dd", escape(str(v))) for k, v in facts.items()), class_="facts")


def _pairs(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
