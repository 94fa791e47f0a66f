"""Correct rules from no paper, which no law may accuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import memkit
from memkit.parts.optimizer import LR, MOMENTUM
from memkit.rule import Gate, Gates, Optimizer, Rule, Slots
from memkit.testing import Discarded, LawBroken, check_rule
from memkit.testing.component import registered_component
from memkit.testing.replay import read_line
from memkit.testing.runner import try_example

SLOW = Gate("slow", 0.0, 1.0)


def two_speeds(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """Past steps that are forgotten fast, and others that are forgotten slowly."""
    fast = gates["momentum"] * slots[0] - gates["lr"] * grad
    slow = gates["slow"] * slots[1] - gates["lr"] * grad
    return fast + slow, (fast, slow)


def two_zeros(weight: Tensor) -> Slots:
    return torch.zeros_like(weight), torch.zeros_like(weight)


TWO_SPEEDS = Optimizer(name="two speeds", step=two_speeds, init=two_zeros, gates=(LR, MOMENTUM, SLOW))


def titans(optimizer: Optimizer) -> Rule:
    return replace(memkit.build("rule", "titans", expansion=2, mini_batch=3), optimizer=optimizer)


def test_a_memory_of_past_steps_under_another_name() -> None:
    check_rule(titans(TWO_SPEEDS), profile="quick")


def test_past_steps_that_momentum_does_not_drop_are_still_found() -> None:
    """With no gate but those that the law knows, what they bring back is told."""

    def kept(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
        step = 0.5 * slots[0] - gates["lr"] * grad
        return step, (step,)

    one = replace(TWO_SPEEDS, step=kept, init=lambda weight: (torch.zeros_like(weight),), gates=(LR, MOMENTUM))
    with pytest.raises(LawBroken, match="clearing gates"):
        check_rule(titans(one), laws=["clearing gates"])


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("memora", "tokens=8, key_dim=4, value_dim=4, prefix=2, form='dual', seed=4828"),
        ("memora", "tokens=9, key_dim=3, value_dim=3, form='dual'"),
        ("moneta", "batch=3, tokens=7, heads=2, key_dim=3, value_dim=3, prefix=3, ragged=True, form='dual', seed=1"),
    ],
)
def test_what_float32_does_to_the_definition_itself_is_not_held_against_a_form(name: str, example: str) -> None:
    """A norm of three numbers that are nearly equal: rounding on the way counts, and that of the inputs hardly does."""
    component = registered_component("rule", name, {})
    verdict = try_example(component, component.law("rounding"), read_line(component.problem, example))
    assert verdict.status == "passed", str(verdict)


def test_a_stream_whose_reference_is_no_number_says_nothing() -> None:
    component = registered_component("rule", "titans", {"mini_batch": 1})
    problem = read_line(component.problem, "gain=2, form='dual', seed=2")
    with pytest.raises(Discarded, match="y reaches nan"):
        component.law("single precision").check(component.instance(problem), problem)
