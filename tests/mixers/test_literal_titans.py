"""The neural memory and the three Titans against plain loops over tokens, written from eq. 11-31."""

from __future__ import annotations

from typing import Any

import pytest

from literal_cases import at_every_problem, hold
from literal_laws import DEEP, MATRIX, LiteralProblem, persistent

ONLINE = {**MATRIX, "mini_batch": 1}
SPECS: dict[str, dict[str, Any]] = {
    "neural memory of two layers": {"name": "neural_memory", "rule": DEEP},
    "neural memory, online and without convolution": {"name": "neural_memory", "rule": ONLINE, "conv": 0},
    "mac of two layers": persistent("mac", segment=4, rule=DEEP),
    "mac, online, without convolution and persistent tokens": {"name": "mac", "segment": 5, "rule": ONLINE, "conv": 0},
    "mac of segments of a token": persistent("mac", segment=1, rule=MATRIX, conv=2),
    "mag of two layers": persistent("mag", window=3, rule=DEEP),
    "mag, online, without convolution and persistent tokens": {"name": "mag", "window": 9, "rule": ONLINE, "conv": 0},
    "mal of two layers": persistent("mal", window=3, rule=DEEP),
    "mal, online, without convolution and persistent tokens": {"name": "mal", "window": 1, "rule": ONLINE, "conv": 0},
}


@at_every_problem
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_mixer_is_its_equations(spec: dict[str, Any], problem: LiteralProblem) -> None:
    hold(spec, problem)
