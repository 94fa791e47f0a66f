"""Numbers as text for people."""

from __future__ import annotations

from collections.abc import Sequence


def same_decimals(values: Sequence[float]) -> list[str]:
    """Format numbers alike, with enough decimals for each."""
    decimals = next((n for n in range(10) if all(abs(value - round(value, n)) < 1e-9 for value in values)), 10)
    return [f"{value:.{decimals}f}" for value in values]


def beside(bound: float, values: Sequence[float], digits: int, kind: str) -> list[str]:
    """Format numbers alike, with `digits` digits, or as many as show on which side of `bound` each lies.

    kind: a kind of `format`, such as "f" for digits after the point and "g" for all digits.
    """

    def side(value: float) -> int:
        return (value > bound) - (value < bound)

    for more in range(digits, 18):
        shown = [f"{value:.{more}{kind}}" for value in values]
        if all(side(float(text)) == side(value) for text, value in zip(shown, values, strict=True)):
            return shown
    return [repr(value) for value in values]


def count(value: float) -> str:
    """Format a count, short."""
    for unit, scale in (("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def signed(value: float) -> str:
    """Format a difference, with a sign unless it rounds to 0."""
    return f"{value:+.3f}".replace("-", "−") if round(value, 3) else "0.000"
