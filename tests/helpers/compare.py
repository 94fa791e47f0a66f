"""Equality in tests, in one place: numbers, states and gradients, and the few tolerances that tests name.

    near(actual, reference)          |actual - reference| <= tolerance (1 + |reference|) at every element
    judged(name, actual, reference)  |actual - reference| <= VALUES max |reference|, for references derived by hand

Both are stricter than the measure of the laws, `memkit.testing.same`, with its tolerance (1 + max |reference|): laws
draw problems at random, and tests choose theirs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import memkit
from memkit.testing.results_and_gradients import ResultsAndGradients, differentiate
from memkit.testing.tolerance import CAUSAL, GRADIENTS, VALUES, named, within
from small_memory import Case

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "FLOAT32_FEW",
    "GRADIENTS",
    "ROUNDING",
    "VALUES",
    "everything",
    "judged",
    "near",
    "within",
]

ROUNDING = CAUSAL
"""The same sums in another order, in float64: 1e-12. `VALUES` (1e-10) and `GRADIENTS` (1e-8) are those of the laws."""

FLOAT32 = 1e-5
"""Two ways through a whole memory in float32, whose numbers have 24 bits (6e-8)."""

FLOAT32_FEW = 1e-6
"""A few operations in float32, in another order: no rounding is carried from token to token."""

BFLOAT16 = 2e-2
"""Two ways to compute in bfloat16, whose numbers have 8 bits (4e-3)."""

SMALLEST, LARGEST = 1e-3, 1e4
"""Largest numbers of a reference that says something: none near rounding, none run away."""


def near(actual: Any, reference: Any, *, tolerance: float = VALUES, equal_nan: bool = False) -> None:
    """Raise `AssertionError` unless two trees (tensors, lists, dicts, states) have the same tensors, to `tolerance`.

    Shapes, dtypes and the names of tensors must be equal; integers and booleans exactly.
    """
    found, wanted = dict(named("it", _tuples(actual))), dict(named("it", _tuples(reference)))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        allowed = tolerance if tensor.is_floating_point() else 0.0
        explained = partial("{}: {}".format, name)
        torch.testing.assert_close(found[name], tensor, rtol=allowed, atol=allowed, equal_nan=equal_nan, msg=explained)


def judged(name: str, actual: Tensor, reference: Tensor) -> None:
    """Raise `AssertionError` unless the distance is at most `VALUES` of the largest number of the reference.

    A reference of numbers that are all small, or of one that is huge, says little, and is refused.
    """
    assert actual.shape == reference.shape, name
    size = float(reference.detach().abs().max())
    assert SMALLEST < size < LARGEST, f"{name}: the case is not fit to judge anything, max |reference| = {size:.1e}"
    distance = float((actual - reference).detach().abs().max()) / size
    assert distance <= VALUES, f"{name} differs by {distance:.1e} of max |reference|"


def everything(case: Case, prepared: Any = lambda run: run, **options: Any) -> ResultsAndGradients:
    """Outputs, state and every gradient of `memkit.memorize`, called through what `prepared` makes of the call."""
    given = {"q": case.q, "k": case.k, "v": case.v, "gates": case.gates, "state": case.state}
    memorize = prepared(lambda leaves: memkit.memorize(case.rule, **leaves, **options))

    def run(leaves: dict[str, Any]) -> dict[str, Any]:
        y, state = memorize(leaves)
        return {"y": y, "state": state}

    return differentiate(run, given)


def _tuples(tree: Any) -> Any:
    return tuple(map(_tuples, tree)) if isinstance(tree, list | tuple) else tree
