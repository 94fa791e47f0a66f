"""The form `triton` against `scan`, for Triton's interpreter: `test_triton` runs this file where TRITON_INTERPRET=1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from memkit import MemoryState, Rule
from memkit.engine import FormName as Form
from memkit.engine.forms.triton import form as triton_dual
from memkit.state import Tree, map_tensors, tensors
from memkit.testing.tolerance import GRADIENTS, same, same_trees

WIDTH, HEADS, BATCH, TOKENS = 16, 1, 2, 37  # two mini-batches of 16, and a part of one


def titans(**options: Any) -> Rule:
    return memkit.build("rule", "titans", **{"expansion": 2, "mini_batch": 16} | options)


class Problem:
    """Tokens, gates and a state that has seen something, all leaves; drawn anew, and the same, every time."""

    def __init__(self, rule: Rule, tokens: int = TOKENS, dtype: torch.dtype = torch.double, seen: int = 0) -> None:
        g = torch.Generator().manual_seed(3)
        shape = (BATCH, tokens, HEADS)
        q, k, v = (torch.randn(*shape, WIDTH, generator=g) for _ in range(3))
        high = {"lr": 0.02, "momentum": 0.9, "decay": 0.2}
        gates = {name: high[name] * torch.rand(shape, generator=g) for name in rule.gates}
        sizes: dict[str, Any] = {"batch": BATCH, "heads": HEADS, "key_dim": WIDTH, "value_dim": WIDTH}
        state = memkit.init_state(rule, **sizes, generator=g)
        if seen:
            *past, gates_then = map_tensors(lambda x: x[:, :seen], (q, k, v, gates))
            state = memkit.memorize(rule, past[0], past[1], past[2], gates_then, state)[1]
        wide = map_tensors(lambda x: x.to(dtype).requires_grad_(), (q, k, v, gates))
        made = {
            name: map_tensors(lambda x: leaf(x, dtype), getattr(state, name)) for name in ("weights", "slots", "anchor")
        }
        self.rule, self.given, self.state = rule, wide, replace(state, **made)
        self.leaves = tensors((wide, *made.values()))

    def run(self, form: Form, **options: Any) -> tuple[Tensor, MemoryState]:
        q, k, v, gates = self.given
        return memkit.memorize(self.rule, q, k, v, gates, self.state, form=form, **options)

    def gradients(self, y: Tensor, state: MemoryState) -> tuple[Tensor, ...]:
        """Of a number that depends on all of a result, in a different way on each part of it."""
        g = torch.Generator().manual_seed(7)
        found = tensors((y, state.weights, state.slots, state.anchor))
        score = torch.stack([(x * torch.randn(x.shape, generator=g)).sum() for x in found]).sum()
        return torch.autograd.grad(score, self.leaves, materialize_grads=True, allow_unused=True)


def leaf(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype).clone().requires_grad_()


def agree(problem: Problem, **options: Any) -> None:
    """Outputs, state and all gradients of the kernel are those of the definition."""
    found, wanted = problem.run("triton", **options), problem.run("scan", **options)
    same_trees("result", found, wanted)
    same_trees("gradient", problem.gradients(*found), problem.gradients(*wanted), GRADIENTS)


MASK = torch.rand(BATCH, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.7
MASK[1, 20:] = False  # a row that ends early keeps its anchor
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 28, [0] * 20 + [1] * 17])


@pytest.mark.parametrize(
    ("rule", "seen", "options"),
    [
        (titans(), 5, {}),  # a call that begins inside of a mini-batch
        (titans(read="before"), 5, {"mask": MASK}),
        (titans(optimizer="heavy_ball"), 0, {"segment_ids": DOCUMENTS}),
        (replace(titans(retention="none"), objective=memkit.build("objective", "l2", scale=0.5)), 0, {"recompute": 20}),
        (replace(titans(), objective=memkit.build("objective", "dot")), 0, {}),
    ],
)
def test_it_equals_the_definition(rule: Rule, seen: int, options: dict[str, Any]) -> None:
    agree(Problem(rule, seen=seen), **options)


@pytest.mark.parametrize("tokens", [0, 1, 16])
def test_any_length(tokens: int) -> None:
    agree(Problem(titans(), tokens, seen=min(tokens, 3)))


def test_blocks_of_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_dual, "GROUP", 2)
    agree(Problem(titans(), seen=3))


def test_the_reference_shape_in_float32() -> None:
    """No farther from the definition in float64 than `dual` in float32, up to the order of its sums."""
    rule = titans(mini_batch=64)

    def results(dtype: torch.dtype, form: Form) -> list[Tensor]:
        problem = Problem(rule, 80, dtype)
        found = problem.run(form)
        return [*tensors(found), *problem.gradients(*found)]

    exact, near, found = results(torch.double, "dual"), results(torch.float, "dual"), results(torch.float, "triton")
    for wanted, other, x in zip(exact, near, found, strict=True):
        assert (x - wanted).abs().max() <= 4 * (other - wanted).abs().max() + 1e-6 * wanted.abs().max()


def test_what_is_observed_is_what_dual_observes() -> None:
    problem = Problem(titans())
    call: Tree = (problem.rule, *problem.given, problem.state)
    found, wanted = (memkit.observe(*call, form=form) for form in ("triton", "dual"))
    same("loss", found.loss, wanted.loss)
    same("surprise", found.surprise, wanted.surprise)
