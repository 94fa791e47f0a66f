"""Goals of benchmarks: a figure, the value to reach, and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ablations.bench.timing import Spread
from ablations.report.numbers import beside

COLUMNS = ("what", "ours", "yardstick", "figure", "to reach", "verdict")


@dataclass(frozen=True)
class Goal:
    """A comparison of two sides, and its goal.

    what: the subject. ours, yardstick: each side's figure with its unit, as text. figure: the comparison over the
    rounds, in `unit`. reach: the goal, a least value or, with at_most, a largest.
    """

    what: str
    ours: str
    yardstick: str
    figure: Spread
    reach: float
    at_most: bool = False
    unit: str = "times"

    @property
    def verdict(self) -> str:
        """Return "reached" if all rounds reach the goal, "not reached" if none does, "not resolved" otherwise."""
        ends = (self.figure.low, self.figure.high)
        reached = [end <= self.reach if self.at_most else end >= self.reach for end in ends]
        if all(reached):
            return "reached"
        return "not resolved" if any(reached) and all(map(math.isfinite, ends)) else "not reached"

    @property
    def cells(self) -> tuple[str, ...]:
        """A row under `COLUMNS`; figures have enough digits to show their side of the goal."""
        low, median, high = self.figure.low, self.figure.median, self.figure.high
        if low == high:
            (figure,) = beside(self.reach, [median], 3, "g")
        else:
            figure = "{} ({} to {})".format(*beside(self.reach, [median, low, high], 2, "f"))
        reach = f"{'at most' if self.at_most else 'at least'} {self.reach:g}"
        return (self.what, self.ours, self.yardstick, f"{figure} {self.unit}".strip(), reach, self.verdict)

    def data(self) -> dict[str, Any]:
        """Return the goal as JSON data, verdict included."""
        return {**vars(self), "figure": vars(self.figure), "verdict": self.verdict}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Goal:
        """Read `data`."""
        fields = {key: value for key, value in data.items() if key != "verdict"}
        return cls(**{**fields, "figure": Spread(**data["figure"])})


def single(value: float) -> Spread:
    """A figure measured once."""
    return Spread(value, value, value)
