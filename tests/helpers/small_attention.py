"""Small attention layers in float64, and a reference for them, one query at a time."""

from __future__ import annotations

import torch
from torch import Tensor

import literal_attention
from memkit.mixers.attention import Attention, FullAttention, SlidingWindowAttention

DIM, HEADS = 12, 2
WINDOWS = [None, 1, 5, 40]


def mixer(window: int | None, seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    made = FullAttention(DIM, HEADS) if window is None else SlidingWindowAttention(DIM, HEADS, window)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3)  # sharp attention: a wrong mask shows
    return made.double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(m: Attention, x: Tensor, prefix: Tensor | None = None) -> Tensor:
    """y of one row of valid tokens x `[T, D]`, behind a prefix `[P, D]`, by plain loops."""
    row = literal_attention.Attention(m, m.window)
    row.begin(x[:0] if prefix is None else prefix)
    return torch.stack([row.token(token) for token in x]) if len(x) else x


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = draw(*y.shape, seed=9)
    return torch.autograd.grad((y * weight).sum(), inputs)
