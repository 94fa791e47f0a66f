"""Times on a machine that others use too: things to compare take turns, and what counts are their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Seconds of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def each(self, count: int) -> Times:
        """The same for one of `count` things that were timed together."""
        return Times(tuple(seconds / count for seconds in self.seconds))

    def relative_to(self, other: Times) -> Spread:
        """How many times as long as `other` this took, round by round."""
        return Spread.of([mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)])


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The least, the median and the largest of some values."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    tell: Callable[[str], None] = lambda name: None,
    *,
    again: bool = False,
) -> dict[str, Times]:
    """Time every call once a round, in turn, after one round that does not count; `tell` hears each call's name.

    again: make each call twice in its turn and time the second, so that no call pays for the memory that the one
    before it gave back, as none does where the same step is taken again and again.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            tell(name)
            if again and turn:
                call()
            start = time.perf_counter()
            call()
            if turn:
                found[name].append(time.perf_counter() - start)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}
