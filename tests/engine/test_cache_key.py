"""Values that behave alike share one key, for as long as one of them is alive."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import memkit
from memkit.cache_key import _KEYS, cache_key
from memkit.parts.objective import negative_dot
from small_memory import titans


def scaled(scale: Any) -> Callable[[float], float]:
    return lambda x: scale * x


def counting_down(start: int) -> Callable[[], int]:
    def down(x: int = start) -> int:
        return down(x - 1) if x else 0

    return down


@pytest.mark.parametrize("name", memkit.names("rule"))
def test_a_rule_built_again_has_the_same_key(name: str) -> None:
    assert memkit.build("rule", name).cache_key is memkit.build("rule", name).cache_key


def test_every_difference_between_rules_counts() -> None:
    rule, l2 = titans(), memkit.build("objective", "l2", scale=2.0)
    others = [titans(depth=1), titans(mini_batch=3), titans(read="before"), replace(rule, objective=l2)]
    assert len({id(x.cache_key) for x in (rule, *others)}) == 5


def test_functions_are_their_code_and_what_they_hold() -> None:
    assert cache_key(scaled(2.0)) is cache_key(scaled(2.0))
    assert len({id(key) for key in [cache_key(scaled(x)) for x in (1, 1.0, True, 2.0, "1")]}) == 5
    assert cache_key(scaled(float("nan"))) is cache_key(scaled(float("nan")))
    assert cache_key(partial(scaled, 2.0)) is cache_key(partial(scaled, 2.0))
    assert cache_key(partial(scaled, 2.0)) is not cache_key(partial(scaled, scale=2.0))
    one, again, other = counting_down(3), counting_down(3), counting_down(4)  # each holds itself
    assert cache_key(one) is cache_key(again)
    assert cache_key(one) is not cache_key(other)


def test_mutable_values_are_only_like_themselves() -> None:
    class More(memkit.Objective):
        """A part with something that no dataclass knows of."""

    for value in ([1], {"a": 1}, object(), More(name="more", loss=negative_dot)):
        assert cache_key(value) is cache_key(value)
        assert cache_key(value) is not cache_key(copy.copy(value))


def test_copies_of_a_rule_have_its_key_and_a_key_goes_with_its_last_rule() -> None:
    rule = titans(expansion=7)
    keys = len(_KEYS)
    assert copy.deepcopy(rule).cache_key is rule.cache_key
    del rule
    gc.collect()
    assert len(_KEYS) < keys
