"""Banks of memories and TNT against plain loops over tokens, written from Nested Learning 71, 74 and TNT 5-7."""

from __future__ import annotations

from typing import Any

import pytest

from literal_cases import at_every_problem, hold
from literal_laws import DEEP, MATRIX, LiteralProblem, persistent

ONLINE = {**MATRIX, "mini_batch": 1}
SPECS: dict[str, dict[str, Any]] = {
    "bank": {"name": "bank", "rule": MATRIX, "levels": [1, 4, 2]},
    "bank of deep memories": persistent("bank", rule=[MATRIX, DEEP], levels=[1, 3]),
    "tnt": persistent("tnt", rule=MATRIX, chunk=4, shards=[5, 7]),
    "tnt of deep memories": {"name": "tnt", "rule": DEEP, "local": DEEP, "chunk": 3, "shards": [4]},
    "tnt by chunks": persistent("tnt", rule=MATRIX, chunk=4, shards=[6], span="chunk"),
    "tnt without projection": {
        "name": "tnt",
        "rule": MATRIX,
        "local": [DEEP],
        "chunk": 2,
        "shards": [11],
        "span": "none",
    },
    "tnt token by token": {"name": "tnt", "rule": MATRIX, "local": ONLINE, "chunk": 1, "shards": [5]},
}


@at_every_problem
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_mixer_is_its_equations(spec: dict[str, Any], problem: LiteralProblem) -> None:
    hold(spec, problem)
