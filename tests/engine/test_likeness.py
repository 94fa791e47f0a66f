"""Values that behave alike share one kind, for as long as one of them is alive."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import memkit
from memkit import likeness
from memkit.likeness import kind_of
from memkit.parts.objective import negative_dot
from small_memory import titans


def scaled(scale: Any) -> Callable[[float], float]:
    return lambda x: scale * x


def counting_down(start: int) -> Callable[[], int]:
    def down(x: int = start) -> int:
        return down(x - 1) if x else 0

    return down


@pytest.mark.parametrize("name", memkit.names("rule"))
def test_a_rule_built_again_is_of_the_same_kind(name: str) -> None:
    assert memkit.build("rule", name).kind is memkit.build("rule", name).kind


def test_every_difference_between_rules_counts() -> None:
    rule, l2 = titans(), memkit.build("objective", "l2", scale=2.0)
    others = [titans(depth=1), titans(mini_batch=3), titans(read="before"), replace(rule, objective=l2)]
    assert len({id(x.kind) for x in (rule, *others)}) == 5


def test_functions_are_their_code_and_what_they_hold() -> None:
    assert kind_of(scaled(2.0)) is kind_of(scaled(2.0))
    assert len({id(kind) for kind in [kind_of(scaled(x)) for x in (1, 1.0, True, 2.0, "1")]}) == 5
    assert kind_of(scaled(float("nan"))) is kind_of(scaled(float("nan")))
    assert kind_of(partial(scaled, 2.0)) is kind_of(partial(scaled, 2.0))
    assert kind_of(partial(scaled, 2.0)) is not kind_of(partial(scaled, scale=2.0))
    one, again, other = counting_down(3), counting_down(3), counting_down(4)  # each holds itself
    assert kind_of(one) is kind_of(again)
    assert kind_of(one) is not kind_of(other)


def test_mutable_values_are_only_like_themselves() -> None:
    class More(memkit.Objective):
        """A part with something that no dataclass knows of."""

    for value in ([1], {"a": 1}, object(), More(name="more", loss=negative_dot)):
        assert kind_of(value) is kind_of(value)
        assert kind_of(value) is not kind_of(copy.copy(value))


def test_copies_of_a_rule_are_of_its_kind_and_a_kind_goes_with_its_last_rule() -> None:
    rule = titans(expansion=7)
    kinds = len(likeness._KINDS)
    assert copy.deepcopy(rule).kind is rule.kind
    del rule
    gc.collect()
    assert len(likeness._KINDS) < kinds
