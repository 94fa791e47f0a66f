"""Pieces of SVG for the figures: tags, scales, ticks, and labels without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


def tag(name: str, /, *inside: str, **attributes: object) -> str:
    """Return one element; `class_` and `stroke_width` become `class` and `stroke-width`; `inside` is markup."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{listed}>{''.join(inside)}</{name}>" if inside else f"<{name}{listed}/>"


def text(content: str, x: float, y: float, class_: str, **attributes: object) -> str:
    """Return a text element, its content escaped."""
    return tag("text", escape(content), x=x, y=y, class_=class_, **attributes)


def tooltip(content: str) -> str:
    """Return a tooltip for the element around it."""
    return tag("title", escape(content))


def path(points: Sequence[tuple[float, float]], class_: str, *, closed: bool = False, **attributes: object) -> str:
    """Return a line through points, or the area inside."""
    steps = "L".join(f"{_short(x)},{_short(y)}" for x, y in points)
    return tag("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_, **attributes)


@dataclass(frozen=True)
class Scale:
    """A linear map of values `low..high` onto pixels `start..stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the place of a value, in pixels."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return about `about` round values between low and high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low or abs(high) or 1.0) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels as little as needed so that neighbors are `gap` apart, within low..high if they fit.

    Overlapping labels form clusters around their mean, as in isotonic regression.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    clusters: list[tuple[float, int]] = []  # center, members
    for i in order:
        clusters.append((places[i], 1))
        while len(clusters) > 1 and _overlap(clusters[-2], clusters[-1], gap):
            (a, n), (b, m) = clusters[-2:]
            clusters[-2:] = [((a * n + b * m) / (n + m), n + m)]
    moved = [center + (k - (members - 1) / 2) * gap for center, members in clusters for k in range(members)]
    found = [0.0] * len(places)
    for i, place in zip(order, _pushed(moved, gap, low, high), strict=True):
        found[i] = place
    return found


def _overlap(one: tuple[float, int], other: tuple[float, int], gap: float) -> bool:
    return other[0] - one[0] < gap * (one[1] + other[1]) / 2


def _pushed(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Keep sorted places within bounds and apart: once upwards from low, once back from high."""
    for i, place in enumerate(places):
        places[i] = max(place, low if i == 0 else places[i - 1] + gap)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high if i == len(places) - 1 else places[i + 1] - gap)
    return places


def _short(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
