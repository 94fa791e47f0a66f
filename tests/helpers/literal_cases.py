"""Problems for the tests of literal references, with mixers of other options than the laws have."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from literal_laws import LiteralProblem, hold_to_literal, made

SHARED: dict[str, Any] = {"batch": 2, "prefix": 3, "tokens": 8, "cuts": (1, 6), "gain": 3, "filled": True}
PROBLEMS = {
    "cuts": LiteralProblem(**SHARED),
    "masks, and a call that reads": LiteralProblem(**SHARED, seed=1, masked=True, write=False),
    "packed documents": LiteralProblem(**SHARED, seed=2, packed=True),
    "masks in packed documents": LiteralProblem(**SHARED, seed=3, masked=True, packed=True),
}
at_every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))


def hold(spec: dict[str, Any], problem: LiteralProblem) -> None:
    """The mixer of a name and options is its literal reference at this problem."""
    hold_to_literal(problem.build(partial(made, spec)), problem, spec)
