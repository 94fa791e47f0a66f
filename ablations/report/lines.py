"""A figure of lines on logarithmic axes, one per system, each with its name at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ablations.report.figures import DASHES, WIDTH, frame
from ablations.report.styles import HUES
from ablations.report.svg import Scale, path, spread_apart, tag, text, tooltip

HEIGHT, TOP, BOTTOM, LEFT = 400, 46, 400 - 56, 76
MOST_MARKS, FAINT = 12, 0.4
FINEST = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
"""Marks so dense that every factor of 2 holds two of them."""


@dataclass(frozen=True)
class Lines:
    """Lines over common axes, both logarithmic.

    x, y: labels of the axes, with units. lines: name -> points (x, y) in the order of x. beyond: name -> further points
    without a measurement, drawn faint and without marks.
    """

    title: str
    x: str
    y: str
    lines: dict[str, list[list[float]]]
    beyond: dict[str, list[list[float]]] = field(default_factory=dict)


def draw(plot: Lines) -> str:
    """Draw the figure as SVG; a line of one point is a dot.

    Lines without points are left out, and points without a place on the axes: 0 and values that are not finite.
    """
    lines = _kept(plot.lines)
    if not lines:
        return frame(90, plot.title, text("Nothing was measured.", 24, 50, "muted"))
    beyond = {name: points for name, points in _kept(plot.beyond).items() if name in lines}
    whole = {name: points + beyond.get(name, []) for name, points in lines.items()}
    every = [point for points in whole.values() for point in points]
    right = WIDTH - 36 - 7.4 * max(map(len, lines))
    x = _scale([point[0] for point in every], LEFT, right)
    y = _scale([point[1] for point in every], BOTTOM, TOP)
    parts = [text(plot.title, 14, 20, "strong"), text(plot.y, 14, 37, "muted small")]
    for at in marks([math.exp(y.low), math.exp(y.high)], own=False):
        parts.append(tag("line", x1=LEFT, x2=right, y1=y(math.log(at)), y2=y(math.log(at)), class_="rule"))
        parts.append(text(f"{at:,.10g}", LEFT - 10, y(math.log(at)) + 4, "muted small end"))
    for at in marks(sorted({point[0] for point in every}), own=True):
        parts.append(text(f"{at:,.0f}", x(math.log(at)), BOTTOM + 20, "muted small middle"))
    parts.append(tag("line", x1=LEFT, x2=right, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    parts.append(text(plot.x, right, BOTTOM + 42, "muted small end"))
    ends = [y(math.log(points[-1][1])) for points in whole.values()]
    for i, (name, label) in enumerate(zip(lines, spread_apart(ends, 18, TOP, BOTTOM), strict=True)):
        places = [(x(math.log(a)), y(math.log(b))) for a, b in whole[name]]
        parts.append(_line(i, name, places, len(lines[name]), right, label))
    return frame(HEIGHT, plot.title, *parts)


def _kept(lines: dict[str, list[list[float]]]) -> dict[str, list[list[float]]]:
    """The points with a place on the axes, of lines with any."""
    kept = {name: [point for point in points if _placed(point)] for name, points in lines.items()}
    return {name: points for name, points in kept.items() if points}


def _placed(point: list[float]) -> bool:
    return all(0 < value < math.inf for value in point)


def _scale(values: Sequence[float], start: float, stop: float) -> Scale:
    """From the least to the largest value, with a margin; at least a factor of 2, so that flat lines look flat."""
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.04 * (high - low), (math.log(2) - (high - low)) / 2)
    return Scale(low - margin, high + margin, start, stop)


def _line(i: int, name: str, points: list[tuple[float, float]], measured: int, right: float, label: float) -> str:
    hue, dash = i % HUES, DASHES[i // HUES % len(DASHES)]
    curves = [path(points[:measured], f"curve s{hue}", stroke_dasharray=dash)]
    if len(points) > measured:
        curves.append(path(points[measured - 1 :], f"curve s{hue}", stroke_dasharray=dash, stroke_opacity=FAINT))
    end_x, end_y = points[-1]
    elbow = [(end_x + 4, end_y), (right + 6, end_y), (right + 18, label)]
    return tag(
        "g",
        tooltip(name),
        path(points, "touch"),
        *curves,
        *(tag("circle", cx=a, cy=b, r=3.5, class_=f"f{hue}") for a, b in points[:measured]),
        path(elbow, f"leader s{hue}"),
        text(name, right + 22, label + 4.5, f"strong f{hue}"),
        class_="series",
    )


def marks(values: Sequence[float], *, own: bool) -> list[float]:
    """Return the marks of an axis for sorted values: the values themselves (own, if few), or round numbers."""
    if own and len(values) <= MOST_MARKS:
        return list(values)
    low, high = values[0], values[-1]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps, least in (((1,), 3), ((1, 3), 3), ((1, 2, 5), 2), (FINEST, 2)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) >= least:
            return found
    return [low, high] if high > low else [low]
