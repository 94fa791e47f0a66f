"""Times on a shared machine: calls take turns, and their ratios count."""

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
        """Divide by `count`, for calls that do `count` things each."""
        return Times(tuple(seconds / count for seconds in self.seconds))

    def relative_to(self, other: Times) -> Spread:
        """Return the ratio of these times to `other`, round by round."""
        return Spread.of([mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)])


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds: the least, the median and the largest."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Sum up values."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[str], None] = lambda name: None,
    *,
    again: bool = False,
) -> dict[str, Times]:
    """Time every call once per round, in turn, after an untimed round; `progress` is called with each call's name.

    again: make each call twice per turn and time the second, so that no call pays for memory that its predecessor
    gave back; in a training loop, none does.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            progress(name)
            if again and turn:
                call()
            start = time.perf_counter()
            call()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}
