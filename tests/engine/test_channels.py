"""Gates per key channel: blocks of any length equal the token-by-token definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from compare import near, within
from memkit import Rule
from memkit.engine.core import channels, coefficients
from memkit.engine.inputs import gate_shape
from memkit.parts.optimizer import momentum
from memkit.rule import Tokens
from memkit.state import tensors

RULES = {
    "gla": memkit.build("rule", "gla"),
    "kda with momentum": replace(memkit.build("rule", "kda"), optimizer=momentum(), read="before"),
    "rwkv7": memkit.build("rule", "rwkv7"),
}
BATCH, HEADS, WIDTH = 1, 2, 3


def draw(rule: Rule, length: int) -> dict[str, Tensor]:
    """Tokens with unit keys and gates of which a third are exactly 0 or 1."""
    g = torch.Generator().manual_seed(length)
    shape = (BATCH, length, HEADS)
    q, k, v = (torch.randn(*shape, WIDTH, generator=g, dtype=torch.double) for _ in range(3))
    found = {"q": q, "k": k / k.norm(dim=-1, keepdim=True), "v": v}
    for name, gate in rule.gates.items():
        if gate.default is None:
            drawn = torch.rand(gate_shape(rule, gate, k, v), generator=g, dtype=torch.double)
            ends = torch.rand(drawn.shape, generator=g) < 1 / 3
            found[name] = torch.where(ends, drawn.round(), drawn) * (0.3 if name == "lr" else 1)
    return found


def run(rule: Rule, given: dict[str, Tensor], form: Any) -> list[Tensor]:
    """Outputs, final state, and gradients to everything given."""
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    g = torch.Generator().manual_seed(0)
    state = memkit.init_state(
        rule, batch=BATCH, heads=HEADS, key_dim=WIDTH, value_dim=WIDTH, generator=g, dtype=torch.double
    )
    q, k, v = (leaves[name] for name in "qkv")
    gates = {name: x for name, x in leaves.items() if name in rule.gates}
    y, state = memkit.memorize(rule, q, k, v, gates, state, form=form)
    results = [y, *tensors((state.weights, state.slots))]
    total = torch.stack([(x.square() * torch.arange(1, x.numel() + 1).view_as(x)).sum() for x in results]).sum()
    return [*results, *torch.autograd.grad(total, list(leaves.values()))]


@pytest.mark.parametrize("length", [1, 2, 7, 33, 67])
@pytest.mark.parametrize("name", RULES)
def test_blocks_of_any_length_are_the_definition(name: str, length: int) -> None:
    rule = RULES[name]
    given = draw(rule, length)
    definition = run(rule, given, "scan")
    for form in ("solve", "dual"):
        near(run(rule, given, form), definition)


def test_scores_are_sums_over_channels_of_products_of_gates() -> None:
    """sum_k x_tk (1 - d_tk) ... (1 - d_{s+1,k}) a_sk, written out."""
    g = torch.Generator().manual_seed(3)
    x, a, decay = (torch.rand(1, 6, WIDTH, generator=g, dtype=torch.double) for _ in range(3))
    gates = {"lr": torch.ones(1, 6).double(), "decay": decay}
    own = channels.unroll(coefficients.probe(RULES["gla"], Tokens(x, a, a, gates), None))
    found = own.weight.scores(x, a)
    for t in range(6):
        for s in range(6):
            kept = (1 - decay[0, s + 1 : t + 1]).prod(0)
            wanted = -(x[0, t] * kept * a[0, s]).sum() if s <= t else torch.zeros(()).double()  # -lr a step
            within("score", found[0, t, s], wanted, 1e-14)
