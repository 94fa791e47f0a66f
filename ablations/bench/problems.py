"""The memories that benchmarks time: Titans' deep memory, with random tokens and gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import memkit

MEMORY = "MLP depth 2 x 4"
"""The memory of `titans_layer`, in words."""


class Problem(NamedTuple):
    """The arguments of one call of `memkit.memorize`: q, k, v [B, T, H, width], gates [B, T, H], and a state."""

    rule: memkit.Rule
    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]
    state: memkit.MemoryState


def problem(
    rule: memkit.Rule, *, batch: int, tokens: int, heads: int, width: int, gates: Mapping[str, float]
) -> Problem:
    """Draw normal values, queries and keys of norm 1, and gates between 0 and the given numbers."""
    g = torch.Generator().manual_seed(0)
    shape = (batch, tokens, heads)
    q, k, v = (torch.randn(*shape, width, generator=g) for _ in range(3))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    drawn = {name: high * torch.rand(shape, generator=g) for name, high in gates.items()}
    state = memkit.init_state(rule, batch=batch, heads=heads, key_dim=width, value_dim=width, generator=g)
    return Problem(rule, q, k, v, drawn, state)


def titans_layer(dim: int, heads: int, mini_batch: int, **options: Any) -> torch.nn.Module:
    """Build a Titans layer with an MLP memory of depth 2 and expansion 4, from seed 0."""
    torch.manual_seed(0)
    rule = {"name": "titans", "depth": 2, "expansion": 4, "mini_batch": mini_batch}
    return memkit.build("mixer", "neural_memory", dim=dim, heads=heads, rule=rule, **options)
