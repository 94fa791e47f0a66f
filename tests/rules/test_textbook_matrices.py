"""Each rule of a matrix memory equals its textbook recurrence: outputs, final state and gradients, in every form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
import textbook
from compare import judged
from memkit import Rule
from memkit.engine.inputs import gate_shape
from memkit.parts.optimizer import momentum
from memkit.state import tensors
from memkit.testing.strategies import forms

BATCH, TOKENS, HEADS, KEY, VALUE = 2, 19, 2, 5, 4
Gates = dict[str, Tensor]


@dataclass(frozen=True)
class Book:
    """A rule, its recurrence, and the recurrence's own gates, from ours of one head `[T, ...]` and its number."""

    rule: Rule
    recurrence: Callable[..., textbook.Found]
    gates: Callable[[Gates, int], dict[str, Any]] = lambda gates, head: {}
    given: tuple[str, ...] = ()
    fixed: dict[str, Any] = field(default_factory=dict)
    value_dim: int = VALUE


def build(name: str, **options: Any) -> Rule:
    return memkit.build("rule", name, **options)


def beta(gates: Gates, head: int) -> Gates:
    return {"beta": gates["lr"]}


def alpha(gates: Gates, head: int) -> Gates:
    return {"alpha": 1 - gates["decay"]}


def alpha_beta(gates: Gates, head: int) -> Gates:
    return alpha(gates, head) | beta(gates, head)


def of_rwkv7(gates: Gates, head: int) -> Gates:
    names = {"a": "erase", "xi": "removal_key", "alpha": "replacement", "removal": "removal"}
    return {"w": 1 - gates["decay"], **{symbol: gates[name] for symbol, name in names.items()}}


ALL_OF_RWKV7 = ("decay", "erase", "removal_key", "replacement", "removal")
BOOKS = {
    "linear_attention": Book(build("linear_attention"), textbook.linear_attention),
    "retnet": Book(build("retnet"), textbook.retnet, lambda gates, head: {"gamma": 1 - 2.0 ** (-5 - head)}),
    "mamba2": Book(
        build("mamba2"),
        textbook.mamba2,
        lambda gates, head: {"a": 1 - gates["decay"], "dt": gates["lr"]},
        ("lr", "decay"),
    ),
    "gla": Book(build("gla"), textbook.gla, alpha, ("decay",)),
    "delta_net": Book(build("delta_net"), textbook.delta_net, beta, ("lr",)),
    "delta_net, beta to 2": Book(build("delta_net", lr_max=2.0), textbook.delta_net, beta, ("lr",)),
    "gated_delta_net": Book(build("gated_delta_net"), textbook.gated_delta_net, alpha_beta, ("lr", "decay")),
    "delta_product": Book(build("delta_product", pairs=3), textbook.delta_product, alpha_beta, ("lr", "decay")),
    "delta_product, not gated": Book(build("delta_product", gated=False), textbook.delta_product, beta, ("lr",)),
    "longhorn": Book(build("longhorn", lr_max=4.0), textbook.longhorn, beta, ("lr",)),
    "kda": Book(build("kda"), textbook.kda, alpha_beta, ("lr", "decay")),
    "kda with momentum": Book(
        replace(build("kda"), optimizer=momentum()),
        textbook.kda_with_momentum,
        lambda gates, head: {**alpha_beta(gates, head), "eta": gates["momentum"]},
        ("lr", "decay", "momentum"),
    ),
    "rwkv7": Book(build("rwkv7"), textbook.rwkv7, of_rwkv7, ALL_OF_RWKV7),
    "ttt_linear": Book(
        build("ttt_linear"),
        textbook.ttt_linear,
        lambda gates, head: {"eta": gates["lr"]},
        ("lr",),
        {"mini_batch": 16},
        value_dim=KEY,
    ),
}
SMALL = {"ttt_linear": 0.05, "kda with momentum": 0.3}
"""The lr of rules that would run away at the end of its range."""


class Comparison:
    """Random tokens, gates inside their ranges with ends among them, and a memory that holds something."""

    def __init__(self, name: str) -> None:
        book, g = BOOKS[name], torch.Generator().manual_seed(11)
        self.book, self.rule = book, book.rule

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.double)

        shape, pairs = (BATCH, TOKENS, HEADS), self.rule.pairs
        q, k, v = normal(*shape, KEY), normal(*shape, pairs, KEY), normal(*shape, pairs * book.value_dim)
        k = (k / k.norm(dim=-1, keepdim=True)).flatten(3)
        gates = {}
        for gate in (self.rule.gates[name] for name in book.given):
            drawn = torch.rand(gate_shape(self.rule, gate, k, v), generator=g, dtype=torch.double)
            drawn[:, 2::7], drawn[:, 5::7] = 0, 1
            high = SMALL.get(name, min(gate.high, 2.0)) if gate.name == "lr" else gate.high
            gates[gate.name] = gate.low + (high - gate.low) * drawn
        state = memkit.init_state(
            self.rule, batch=BATCH, heads=HEADS, key_dim=KEY, value_dim=book.value_dim, generator=g, dtype=torch.double
        )
        constants = {name: x + 0.3 * normal(*x.shape) for name, x in state.constants.items()}
        weight = normal(*state.weights["w1"].shape)
        self.leaves = {"q": q, "k": k, "v": v, **gates, "w1": weight, **constants}
        self.names, self.constants, self.state = list(gates), list(constants), state
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def ours(self, form: Any) -> tuple[Tensor, Tensor]:
        """Outputs and final matrix of the engine."""
        q, k, v = (self.leaves[name] for name in "qkv")
        weights = {"w1": self.leaves["w1"]}
        constants = {name: self.leaves[name] for name in self.constants}
        anchor = weights if self.state.anchor else {}
        state = replace(self.state, initial=weights, weights=weights, anchor=anchor, constants=constants)
        gates = {name: self.leaves[name] for name in self.names}
        y, state = memkit.memorize(self.rule, q, k, v, gates, state, form=form, block_size=8)
        return y, state.weights["w1"]

    def theirs(self) -> tuple[Tensor, Tensor]:
        """The same by the book, one head of one row after the other."""
        outputs, ends = [], []
        for b in range(BATCH):
            for h in range(HEADS):
                tokens = {name: self.leaves[name][b, :, h] for name in ("q", "k", "v", *self.names)}
                gates = self.book.gates(tokens, h) | {name: self.leaves[name][b, h] for name in self.constants}
                q, k, v = (tokens[name] for name in "qkv")
                y, end = self.book.recurrence(self.leaves["w1"][b, h], q, k, v, **gates, **self.book.fixed)
                outputs.append(y)
                ends.append(end)
        shape = (BATCH, HEADS)
        return torch.stack(outputs).unflatten(0, shape).transpose(1, 2), torch.stack(ends).unflatten(0, shape)

    def gradients(self, results: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Of all outputs and the final matrix, in some direction, to everything that went in."""
        g = torch.Generator().manual_seed(5)
        directions = [torch.randn(x.shape, generator=g, dtype=torch.double) for x in results]
        return list(torch.autograd.grad(results, list(self.leaves.values()), directions))


@pytest.mark.parametrize("name", BOOKS)
def test_a_rule_is_its_textbook_recurrence(name: str) -> None:
    case = Comparison(name)
    reference = case.theirs()
    slopes = case.gradients(reference)
    for form in forms(case.rule):
        found = case.ours(form)
        for what, a, b in zip(("y", "the final matrix"), found, reference, strict=True):
            judged(f"{form}: {what}", a, b)
        for leaf, a, b in zip(case.leaves, case.gradients(found), slopes, strict=True):
            judged(f"{form}: the gradient of {leaf}", a, b)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [("linear_attention", {"lr": [1.0, 1.0]}), ("retnet", {"lr": [1.0, 1.0], "decay": [1 / 32, 1 / 64]})],
)
def test_gates_left_out_are_those_of_the_paper(name: str, defaults: dict[str, list[float]]) -> None:
    case = Comparison(name)
    q, k, v = (case.leaves[x] for x in "qkv")
    given = {key: torch.tensor(x).double().expand(BATCH, TOKENS, HEADS) for key, x in defaults.items()}
    found = [tensors(memkit.memorize(case.rule, q, k, v, gates, case.state)) for gates in (given, {})]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
