"""Checks shared by every storey, so that the same mistake gets the same words everywhere."""

from __future__ import annotations

import math


def positive(name: str, value: int) -> None:
    """Raise `ValueError` unless `value` is an integer of at least 1."""
    _integer(name, value, 1)


def not_negative(name: str, value: int) -> None:
    """Raise `ValueError` unless `value` is an integer of at least 0."""
    _integer(name, value, 0)


def divides(name: str, part: int, whole_name: str, whole: int) -> None:
    """Raise `ValueError` unless `part` and `whole` are positive integers and `part` divides `whole`."""
    positive(name, part)
    positive(whole_name, whole)
    if whole % part:
        below = whole - whole % part
        near = f"{below} or {below + part}" if below else f"{part}"
        raise ValueError(
            f"{name} = {part} does not divide {whole_name} = {whole}. "
            f"Make {whole_name} a multiple of it, such as {near}, or change {name}."
        )


def in_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise `ValueError` unless `value` is a finite number with `low <= value <= high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {bounds}; got {value!r}.")


def _integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
