"""Where two lines cross: from which length on one system is faster than another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablations.bench.timing import Spread


def crossing(lengths: Sequence[float], ours: Sequence[float], yardstick: Sequence[float]) -> float:
    """The least length from which ours stays below the yardstick: interpolated, straight in logarithms.

    The first length where that holds from the start, infinity where ours is not below at the last.
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


def told(found: Spread, lengths: Sequence[float]) -> str:
    """A crossing in words: the median, and the least and the largest of the rounds."""
    median, low, high = (_length(value, lengths) for value in (found.median, found.low, found.high))
    return median if low == high else f"{median} ({low} to {high})"


def _length(value: float, lengths: Sequence[float]) -> str:
    if math.isinf(value):
        return f"not up to {lengths[-1]:,}"
    return f"{lengths[0]:,} or less" if value <= lengths[0] else f"{value:,.0f}"
