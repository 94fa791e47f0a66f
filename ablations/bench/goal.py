"""A figure that a benchmark is to reach, and whether it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ablations.bench.timing import Spread
from ablations.report.numbers import beside

COLUMNS = ("what", "ours", "yardstick", "figure", "to reach", "verdict")


@dataclass(frozen=True)
class Goal:
    """What is compared, and the figure that comes of it.

    ours, yardstick: the two sides, each with its own figure and unit, as people read them. figure: what is made of
    the two, over the rounds. reach: what the figure is to be, at least or (at_most) at most.
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
        """Whether all rounds reach it, or none does; "not resolved" where the spread is wider than the margin."""
        ends = (self.figure.low, self.figure.high)
        reached = [end <= self.reach if self.at_most else end >= self.reach for end in ends]
        if all(reached):
            return "reached"
        return "not resolved" if any(reached) and all(map(math.isfinite, ends)) else "not reached"

    @property
    def cells(self) -> tuple[str, ...]:
        """A row under `COLUMNS`; on which side of the goal its figures lie can be seen from their digits."""
        low, median, high = self.figure.low, self.figure.median, self.figure.high
        if low == high:
            (figure,) = beside(self.reach, [median], 3, "g")
        else:
            figure = "{} ({} to {})".format(*beside(self.reach, [median, low, high], 2, "f"))
        reach = f"{'at most' if self.at_most else 'at least'} {self.reach:g}"
        return (self.what, self.ours, self.yardstick, f"{figure} {self.unit}".strip(), reach, self.verdict)

    def data(self) -> dict[str, Any]:
        """For JSON, the verdict included."""
        return {**vars(self), "figure": vars(self.figure), "verdict": self.verdict}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Goal:
        """From `data`."""
        fields = {key: value for key, value in data.items() if key != "verdict"}
        return cls(**{**fields, "figure": Spread(**data["figure"])})


def single(value: float) -> Spread:
    """A figure that was taken once."""
    return Spread(value, value, value)
