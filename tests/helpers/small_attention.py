"""Small attention layers in float64, and what they should compute, one query at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    """One row of valid tokens x [T, D], one query at a time; positions turn complex pairs of channels."""
    heads, width = m.heads, m.dim // m.heads
    prefix = x[:0] if prefix is None else prefix

    def split(tokens: Tensor, weight: Tensor) -> Tensor:
        return (tokens @ weight.T).reshape(len(tokens), heads, width)

    def rotate(y: Tensor) -> Tensor:
        half = width // 2
        turned = []
        for t in range(len(y)):
            angle = torch.tensor([t * 10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
            pairs = torch.complex(y[t, :, :half], y[t, :, half:]) * torch.exp(1j * angle)
            turned.append(torch.cat([pairs.real, pairs.imag], -1))
        return torch.stack(turned) if turned else y

    to_k, to_v = m.to_kv.weight.chunk(2)
    q, k, v = rotate(split(x, m.to_q.weight)), rotate(split(x, to_k)), split(x, to_v)
    prefix_k, prefix_v = split(prefix, to_k), split(prefix, to_v)
    outputs = []
    for t in range(len(x)):
        start = 0 if m.window is None else max(0, t + 1 - m.window)
        keys, values = torch.cat([prefix_k, k[start : t + 1]]), torch.cat([prefix_v, v[start : t + 1]])
        weights = torch.exp((q[t] * keys).sum(-1) / math.sqrt(width))  # [slots, H]
        outputs.append(((weights[..., None] * values).sum(0) / weights.sum(0)[:, None]).flatten())
    return torch.stack(outputs) @ m.to_out.weight.T if outputs else x


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = draw(*y.shape, seed=9)
    return torch.autograd.grad((y * weight).sum(), inputs)
