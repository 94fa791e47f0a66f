"""A small memory with tokens for it, for the tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import memkit
from memkit import MemoryState, Rule
from memkit.state import map_tensors, tensors

BATCH, TOKENS, HEADS, WIDTH = 3, 11, 2, 4


def titans(**options: Any) -> Rule:
    """Titans with small memories and mini-batches."""
    return memkit.build("rule", "titans", **{"expansion": 2, "mini_batch": 4} | options)


@dataclass
class Case:
    """Tokens, gates and a state for a rule; drawn anew, and the same, every time."""

    rule: Rule = field(default_factory=titans)
    dtype: torch.dtype = torch.double
    tokens: int = TOKENS
    batch: int = BATCH

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(3)
        shape = (self.batch, self.tokens, HEADS)
        self.q, self.k, self.v = (torch.randn(*shape, WIDTH, generator=g).to(self.dtype) for _ in range(3))
        high = {"lr": 0.05, "momentum": 0.9, "decay": 0.2, "weight": 1.0, "delta": 2.0}
        self.gates = {name: (high[name] * torch.rand(shape, generator=g)).to(self.dtype) for name in self.rule.gates}
        wide = torch.promote_types(self.dtype, torch.float32)
        sizes: dict[str, Any] = {"batch": self.batch, "heads": HEADS, "key_dim": WIDTH, "value_dim": WIDTH}
        self.state: MemoryState = memkit.init_state(self.rule, **sizes, generator=g, dtype=wide)

    def memorize(self, part: slice = slice(None), **given: Any) -> tuple[Tensor, MemoryState]:
        """Call `memkit.memorize` with some of the tokens, or with something else where it is given."""
        tokens = map_tensors(lambda x: x[:, part], {"q": self.q, "k": self.k, "v": self.v, "gates": self.gates})
        arguments: dict[str, Any] = {"rule": self.rule, "state": self.state, **tokens, **given}
        return memkit.memorize(**arguments)

    def observe(self, **given: Any) -> memkit.Observation:
        """Call `memkit.observe` with the tokens, or with something else where it is given."""
        tokens = {"q": self.q, "k": self.k, "v": self.v, "gates": self.gates}
        arguments: dict[str, Any] = {"rule": self.rule, "state": self.state, **tokens, **given}
        return memkit.observe(**arguments)

    def leaves(self) -> list[Tensor]:
        """Make everything that gradients flow to require one: tokens, gates, initial weights, slots and constants."""
        weights = map_tensors(torch.clone, self.state.weights)
        slots = map_tensors(torch.clone, self.state.slots)
        constants = map_tensors(torch.clone, self.state.constants)
        anchor = weights if self.state.anchor else {}
        made = {"initial": weights, "weights": weights, "anchor": anchor, "slots": slots, "constants": constants}
        self.state = replace(self.state, **made)
        return [x.requires_grad_() for x in tensors((self.q, self.k, self.v, self.gates, weights, slots, constants))]


def score(y: Tensor, state: MemoryState) -> Tensor:
    """One number that depends on all of a result."""
    return torch.stack([(x.double() ** 2).sum() for x in tensors((y, state.weights, state.slots))]).sum()
