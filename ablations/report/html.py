"""`report.html`: one file, no scripts, nothing fetched, for light and dark screens and for paper."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from ablations.report.figures import STYLE, THEME, curves, dots
from ablations.report.svg import tag
from ablations.report.table import footnote, headline, make_table, troubles

PAGE_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.6 Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums;-webkit-font-smoothing:antialiased}
main{max-width:1080px;margin:0 auto;padding:56px 40px 72px}
.eyebrow{margin:0;color:var(--muted);font-size:13px;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.15em 0 .35em;font-size:34px;line-height:1.2;letter-spacing:-.018em;font-weight:700;text-wrap:balance}
h2{margin:52px 0 4px;font-size:20px;letter-spacing:-.01em}
p{margin:.4em 0;max-width:70ch}.muted{color:var(--muted)}.small{font-size:14px;line-height:1.55}
.headline{margin:22px 0 0;padding:16px 20px;border-left:4px solid var(--c0);background:var(--faint);
border-radius:0 8px 8px 0;font-size:17px;font-weight:550;max-width:none}
.trouble{border-color:var(--mark);font-weight:400;font-size:15px}
figure{margin:14px 0 0;overflow-x:auto}
svg.chart{display:block;width:100%;min-width:680px;height:auto}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;width:100%;font-size:14px;line-height:1.35}
td{white-space:nowrap}th{font-weight:600;color:var(--muted);vertical-align:bottom}
th,td{padding:9px 0 9px 16px;text-align:right;border-bottom:1px solid var(--faint)}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{border-bottom:0}thead tr:last-child th{border-bottom:1px solid var(--line)}
td.paper,th.paper{color:var(--muted);background:var(--faint);padding-right:12px}
td.paper.first,th.paper.first{border-left:18px solid var(--paper)}
th.group{text-align:center;font-size:12px;letter-spacing:.06em;text-transform:uppercase;padding-bottom:0}
tr.best td:nth-child(-n+2){font-weight:700}
tr.yardstick td{color:var(--muted);border-bottom:0}
.tag{margin-left:8px;padding:1px 7px;border:1px solid var(--line);border-radius:99px;color:var(--muted);
font-size:11.5px;font-weight:400}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:4px 22px;margin:12px 0;font-size:14px}
.facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
details{margin-top:14px}summary{cursor:pointer;font-size:14px;color:var(--muted)}
code{font:.9em ui-monospace,"SF Mono",Menlo,Consolas,monospace}
pre{padding:18px 20px;background:var(--faint);border-radius:8px;overflow-x:auto;
font:13px/1.55 ui-monospace,"SF Mono",Menlo,Consolas,monospace}
@media(max-width:640px){main{padding:32px 18px}h1{font-size:26px}}
@media print{main{padding:0}details{display:none}}
"""


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    report, failures = results["report"], troubles(results)
    body = [
        tag("p", "memkit ablation", class_="eyebrow"),
        tag("h1", escape(results["title"])),
        paragraph(results["description"]),
        tag("p", escape(headline(results)), class_="headline"),
        *(tag("p", escape(failure), class_="headline trouble") for failure in failures),
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
    """A page of its own: markup in the house's style, and some style besides."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", escape(title)),
        tag("style", THEME + STYLE + PAGE_STYLE + style),
    ]
    html = tag("html", tag("head", *head), "\n", tag("body", tag("main", "\n".join(body))), lang="en")
    return f"<!doctype html>\n{html}\n"


def paragraph(content: str, class_: str = "") -> str:
    """A paragraph of plain words, `code` in backquotes; nothing for no words."""
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
