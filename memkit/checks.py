"""Checks that every storey shares, so that the same mistake gets the same words everywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from memkit.rule import Rule


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


def check_point(rule: Rule) -> None:
    """Raise `ValueError` for a gradient point that needs a gate or a slot that the optimizer and retention lack."""
    weight = torch.zeros(())
    gates = {gate.name: torch.zeros(()) for gate in rule.weight_gates}
    try:
        rule.point(weight, rule.init_slots(weight), gates)
    except (KeyError, IndexError) as error:
        lacks = f"the gate {error.args[0]!r}" if isinstance(error, KeyError) else "a slot"
        raise ValueError(
            f"rule {rule.name!r}: its gradient point needs {lacks}, which its optimizer {rule.optimizer.name!r} and "
            f"retention {rule.retention.name!r} do not have. Use parts that do (momentum() for at_lookahead, decay() "
            "for at_decayed), or point=at_weights."
        ) from None


def _integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
