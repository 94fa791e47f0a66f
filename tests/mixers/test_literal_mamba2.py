"""Mamba-2 as a layer against a plain loop over tokens."""

from __future__ import annotations

from typing import Any

import pytest

from literal_cases import at_every_problem, hold
from literal_laws import LiteralProblem, persistent

SPECS: dict[str, dict[str, Any]] = {
    "mamba2 behind persistent tokens": persistent("mamba2", state=3),
    "mamba2 without convolution": {"name": "mamba2", "state": 5, "expand": 1, "conv": 0},
}


@at_every_problem
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_mixer_is_its_equations(spec: dict[str, Any], problem: LiteralProblem) -> None:
    hold(spec, problem)
