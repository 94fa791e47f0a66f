"""The step form, token by token: observations, ragged rows, copies and rounding, which the laws leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import memkit
from compare import near
from memkit import Rule
from small_memory import BATCH, TOKENS, Case, titans

RULES = [
    titans(),
    titans(surprise_limit=0.5, read="before"),
    titans(point="lookahead", retention="none"),
    replace(titans(depth=1), effective=torch.tanh),
    replace(titans(), optimizer=replace(titans().optimizer, linear=False)),
    memkit.build("rule", "delta_net"),
]
every_rule = pytest.mark.parametrize("rule", RULES)


def mask() -> torch.Tensor:
    there = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(5)) < 0.7
    there[1] = False
    return there


@every_rule
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
def test_step_observes_the_loss_and_surprise_of_the_definition(rule: Rule, masked: bool) -> None:
    case, there = Case(rule), mask() if masked else None
    found, expected = (case.observe(form=form, mask=there) for form in ("step", "scan"))
    near(found.loss, expected.loss)
    near(found.surprise, expected.surprise)


@every_rule
def test_single_tokens_of_rows_that_have_gone_apart(rule: Rule) -> None:
    """Nobody knows without looking which of them begin a mini-batch: some do, at every token."""
    case, there = Case(rule), mask()
    expected, _ = case.memorize(form="scan", mask=there)
    state, found = case.state, []
    for t in range(TOKENS):
        y, state = case.memorize(slice(t, t + 1), state=state, mask=there[:, t : t + 1])
        found.append(y)
    near(torch.cat(found, 1), expected)


def test_unchanged_parts_of_a_state_are_not_copied() -> None:
    case = Case()
    _, state = case.memorize(slice(0, 1))
    _, after = case.memorize(slice(1, 2), state=state)
    assert after.anchor is state.anchor
    assert after.weights["w1"].is_contiguous()


def test_a_single_token_is_not_rounded_by_the_products_of_blocks() -> None:
    case, rounded = Case(dtype=torch.float32), {"products": torch.bfloat16}
    one = slice(0, 1)
    assert torch.equal(case.memorize(one, **rounded)[0], case.memorize(one, form="step")[0])
    assert not torch.equal(case.memorize(one, form="dual", **rounded)[0], case.memorize(one, form="dual")[0])
