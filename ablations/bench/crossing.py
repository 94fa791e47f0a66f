"""The length beyond which one system stays faster than another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablations.bench.timing import Spread


def crossing(lengths: Sequence[float], ours: Sequence[float], yardstick: Sequence[float]) -> float:
    """Return the least length beyond which ours stays below the yardstick, interpolated linearly in logarithms.

    The first length if ours is below at all lengths; infinity if it is not below at the last.
    """
    above = [math.log(a / b) for a, b in zip(ours, yardstick, strict=True)]
    last = max((i for i, gap in enumerate(above) if gap >= 0), default=-1)
    if last == -1:
        return float(lengths[0])
    if last == len(lengths) - 1:
        return math.inf
    part = above[last] / (above[last] - above[last + 1])
    low, high = math.log(lengths[last]), math.log(lengths[last + 1])
    return math.exp(low + part * (high - low))


def describe(spread: Spread, lengths: Sequence[float]) -> str:
    """Describe a crossing by the median, the least and the largest of the rounds."""
    median, low, high = (_length(value, lengths) for value in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _length(value: float, lengths: Sequence[float]) -> str:
    if math.isinf(value):
        return f"not up to {lengths[-1]:,}"
    return f"{lengths[0]:,} or less" if value <= lengths[0] else f"{value:,.0f}"
