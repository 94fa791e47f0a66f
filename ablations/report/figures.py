"""The two figures of a report, as SVG, in the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ablations.report.numbers import count, same_decimals
from ablations.report.styles import FIGURES, HUES, THEME
from ablations.report.svg import Scale, path, spread_apart, tag, text, ticks, tooltip
from ablations.report.table import score, winner
from ablations.results import Summary, summaries

WIDTH = 920
DASHES = ("none", "7 4", "2 3")


def standalone(svg: str) -> str:
    """Turn a figure into a file of its own, with its colors and a background."""
    style = tag("style", THEME + FIGURES)
    background = tag("rect", width="100%", height="100%", fill="var(--paper)")
    head, rest = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{background}{rest}\n'


def dots(results: dict[str, Any]) -> str:
    """Draw the headline metric of each variant: its seeds, their range and their mean, beside the baseline's."""
    rows = summaries(results)
    values = [value for row in rows for value in row.values]
    if not values:
        return frame(90, "No run has finished yet", text("No run has finished yet.", 24, 50, "muted"))
    height, top = 78 + 34 * len(rows), 26
    left, right = 30 + 7.4 * max(len(row.name) for row in rows), WIDTH - 150
    margin = 0.08 * (max(values) - min(values) or abs(values[0]) or 1.0)
    x = Scale(min(values) - margin, max(values) + margin, left, right)
    bottom = height - 46
    parts = [
        tag("line", x1=x(at), x2=x(at), y1=top - 8, y2=bottom, class_="rule")
        + text(label, x(at), bottom + 18, "muted small middle")
        for at, label in _labelled(ticks(x.low, x.high, 7))
    ]
    reference = next(row.mean for row in rows if row.name == results["baseline"])
    if reference is not None:
        parts.append(tag("line", x1=x(reference), x2=x(reference), y1=top - 8, y2=bottom, class_="reference"))
        parts.append(text("baseline", x(reference), top - 11, "muted small middle"))
    leader = winner(results, rows)
    for i, row in enumerate(rows):
        parts.append(_dot_row(row, i, x, top + 17 + 34 * i, row is leader))
    metric, yardstick = results["metric"], results["yardstick"]
    caption = f"{metric['unit']}, held out · {metric['direction']} is better · the axis does not begin at 0"
    parts.append(text(caption, left, bottom + 38, "muted small"))
    parts.append(text(f"{yardstick['label']}: {yardstick['value']:.3f}", WIDTH - 14, bottom + 38, "mark small end"))
    return frame(height, f"{metric['name']} of each variant", *parts)


def _dot_row(row: Summary, i: int, x: Scale, y: float, leads: bool) -> str:
    hue = i % HUES
    weight = " strong" if leads else ""
    parts = [tooltip(f"{row.name}: {score(row)}"), text(row.name, x.start - 16, y + 4.5, f"end{weight}")]
    if row.mean is None:
        parts.append(text("failed" if row.failures else "not run yet", x.start + 8, y + 4.5, "mark"))
        return tag("g", *parts, class_="series")
    ends = {"x1": x(min(row.values)), "x2": x(max(row.values)), "y1": y, "y2": y}
    parts.append(tag("line", **ends, class_=f"range s{hue}"))
    parts += [tag("circle", cx=x(value), cy=y, r=3, class_=f"seed f{hue}") for value in row.values]
    parts.append(tag("circle", cx=x(row.mean), cy=y, r=6.5, class_=f"mean f{hue}"))
    parts.append(text(score(row), WIDTH - 14, y + 4.5, f"end{weight}"))
    return tag("g", *parts, class_="series")


def curves(results: dict[str, Any]) -> str:
    """Draw learning curves: the mean over seeds, their range as a band, a name at each curve's end."""
    rows = [(i, row) for i, row in enumerate(summaries(results)) if row.curve]
    if not rows:
        return frame(90, "No evaluation yet", text("No evaluation yet.", 24, 50, "muted"))
    metric, yardstick = results["metric"], results["yardstick"]
    every = [value for _, row in rows for point in row.curve for value in point[2:]] + [yardstick["value"]]
    height, left, top, bottom = 470, 62, 40, 470 - 52
    right = WIDTH - 44 - 7.4 * max(len(row.name) + 6 for _, row in rows)
    margin = 0.04 * (max(every) - min(every) or 1.0)
    y = Scale(min(every) - margin, max(every) + margin, bottom, top)
    x = Scale(0, max(point[0] for _, row in rows for point in row.curve), left, right)
    parts = [
        tag("line", x1=left, x2=right, y1=y(at), y2=y(at), class_="rule")
        + text(label, left - 10, y(at) + 4, "muted small end")
        for at, label in _labelled(ticks(min(every), max(every), 6))
    ]
    parts += [text(count(at), x(at), bottom + 20, "muted small middle") for at in ticks(0, x.high, 6)]
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(text("training tokens", right, bottom + 40, "muted small end"))
    parts.append(text(f"{metric['unit']}, held out", 14, 20, "muted small"))
    parts.append(_yardstick(yardstick, x, y))
    labels = spread_apart([y(row.curve[-1][1]) for _, row in rows], 18, top, bottom)
    parts += [_curve(i, row, x, y, label) for (i, row), label in zip(rows, labels, strict=True)]
    return frame(height, f"{metric['name']} while training", *parts)


def _curve(i: int, row: Summary, x: Scale, y: Scale, label: float) -> str:
    hue, dash = i % HUES, DASHES[i // HUES % len(DASHES)]
    line = [(x(tokens), y(mean)) for tokens, mean, _, _ in row.curve]
    band = [(x(tokens), y(high)) for tokens, _, _, high in row.curve]
    band += [(x(tokens), y(low)) for tokens, _, low, _ in reversed(row.curve)]
    end_x, end_y = line[-1]
    start = x.stop + 22
    elbow = [(end_x + 4, end_y), (x.stop + 6, end_y), (start - 4, label)]
    last = f"{row.curve[-1][1]:.3f}"
    return tag(
        "g",
        tooltip(f"{row.name}: {last} after {count(row.curve[-1][0])} tokens"),
        path(band, f"band f{hue}", closed=True),
        path(line, "touch"),
        path(line, f"curve s{hue}", stroke_dasharray=dash),
        tag("circle", cx=end_x, cy=end_y, r=3.5, class_=f"f{hue}"),
        path(elbow, f"leader s{hue}"),
        text(row.name, start, label + 4.5, f"strong f{hue}"),
        text(last, WIDTH - 14, label + 4.5, "muted small end"),
        class_="series",
    )


def _yardstick(yardstick: dict[str, Any], x: Scale, y: Scale) -> str:
    at = y(yardstick["value"])
    label = f"{yardstick['label']}: {yardstick['value']:.3f}"
    return tag("line", x1=x.start, x2=x.stop, y1=at, y2=at, class_="yardstick") + text(
        label, x.stop, at - 8, "mark small end"
    )


def frame(height: float, label: str, *parts: str) -> str:
    """Return the figure's root element, with a label for screen readers."""
    return tag(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        class_="chart",
        role="img",
        aria_label=label,
    )


def _labelled(values: list[float]) -> Iterator[tuple[float, str]]:
    return zip(values, same_decimals(values), strict=True)
