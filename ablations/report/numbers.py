"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def same_decimals(values: Sequence[float]) -> list[str]:
    """Numbers that stand together, with as many decimals as the one that needs most."""
    decimals = next((n for n in range(10) if all(abs(value - round(value, n)) < 1e-9 for value in values)), 10)
    return [f"{value:.{decimals}f}" for value in values]


def beside(bound: float, values: Sequence[float], digits: int, kind: str) -> list[str]:
    """Numbers that stand together, with more digits where it takes more to tell each from `bound`.

    kind: of `format`, as "f" for digits after the point and "g" for digits in all.
    """

    def side(value: float) -> int:
        return (value > bound) - (value < bound)

    for more in range(digits, 18):
        shown = [f"{value:.{more}{kind}}" for value in values]
        if all(side(float(text)) == side(value) for text, value in zip(shown, values, strict=True)):
            return shown
    return [repr(value) for value in values]


def count(value: float) -> str:
    """A count, short."""
    for unit, scale in (("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def size(count: float) -> str:
    """Bytes."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def signed(value: float) -> str:
    """A difference, with a sign unless it rounds to nothing."""
    return f"{value:+.3f}".replace("-", "−") if round(value, 3) else "0.000"
