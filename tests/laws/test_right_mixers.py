"""Correct mixers, at problems where a law once accused them."""

from __future__ import annotations

from functools import partial

import pytest

import memkit
from memkit.testing import MIXER_LAWS
from memkit.testing.component import sequence_component
from memkit.testing.replay import read_line


@pytest.mark.parametrize("example", ["batch=2, prefix=3, ragged=True, seed=3", "batch=2, prefix=4, ragged=True"])
def test_rows_that_begin_their_segments_at_tokens_of_their_own(example: str) -> None:
    """One row remembers how its memory was when the segment began, the other keeps what it remembered."""
    small = {"name": "titans", "mini_batch": 4, "expansion": 2, "depth": 1}
    component = sequence_component(
        partial(memkit.build, "mixer", "mac", dim=8, heads=2, segment=4, rule=small), "mixer"
    )
    problem = read_line(component.problem, example)
    MIXER_LAWS["reading does not write"].check(component.instance(problem), problem)
