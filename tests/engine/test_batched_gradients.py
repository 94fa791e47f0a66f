"""Gradients of many functionals at once (`is_grads_batched`) equal those taken one by one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import memkit
from compare import near
from memkit.testing import RuleProblem

RULES = {
    "fused": memkit.build("rule", "titans", mini_batch=4),
    "fused, a matrix": memkit.build("rule", "titans", depth=1, mini_batch=4),
    "iterate": memkit.build("rule", "ttt_mlp", mini_batch=1),
    "solve": memkit.build("rule", "titans", depth=1, mini_batch=1),
    "expand": memkit.build("rule", "atlas", mini_batch=4),
}


def check(y: Tensor, leaves: Sequence[Tensor]) -> None:
    vectors = torch.randn(3, *y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    each = [torch.autograd.grad(y, leaves, vector, retain_graph=True) for vector in vectors]
    together = torch.autograd.grad(y, leaves, vectors, is_grads_batched=True, retain_graph=True)
    near(together, [torch.stack(one) for one in zip(*each, strict=True)])


@pytest.mark.parametrize("form", RULES)
def test_batched_gradients_of_a_memory(form: str) -> None:
    rule, problem = RULES[form], RuleProblem(batch=2, tokens=9, key_dim=3, value_dim=3, seed=1)
    tokens, state = problem.tokens_for(rule), problem.fresh_state(rule)
    leaves = [x.requires_grad_() for x in (tokens.q, tokens.k, tokens.v, *tokens.gates.values())]
    y, _ = memkit.memorize(rule, *tokens, state)
    check(y, leaves)


@pytest.mark.parametrize(
    ("name", "options"),
    [("mac", {"segment": 4}), ("mag", {"window": 3}), ("tnt", {"chunk": 3, "shards": [8], "checkpoint": True})],
)
def test_batched_gradients_of_a_model(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = memkit.build("architecture", name, vocab_size=7, dim=8, heads=2, depth=2, **options).double()
    logits, _ = model(torch.randint(7, (2, 40)))
    check(logits, [*model.parameters()])


def test_batched_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    memory = memkit.build("mixer", "neural_memory", dim=4, heads=1, rule=RULES["fused"]).double()
    x = torch.randn(1, 6, 4, dtype=torch.double)
    one, many = (
        torch.autograd.functional.hessian(lambda x: memory(x)[0].square().sum(), x, vectorize=many)
        for many in (False, True)
    )
    near(many, one)
