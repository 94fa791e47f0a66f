"""Tokens equal on every machine, for comparisons with implementations that are not installed."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

BATCH, TOKENS, HEADS, KEY, VALUE = 1, 11, 2, 4, 3


def peer_tokens() -> dict[str, Tensor]:
    """q, k `[B, T, H, K]`, v `[B, T, H, V]`, state `[B, H, K, V]`; gates lr, keep `[B, T, H]`, keep_key `[B, T, H, K]`.

    float32; keys of norm 1; keep = 1 - decay.
    """
    numbers = count(1)

    def wave(*shape: int) -> Tensor:
        n = next(numbers)
        steps = torch.arange(torch.Size(shape).numel(), dtype=torch.double)
        return torch.sin((1.3 + 0.17 * n) * steps + n).view(shape)

    tokens = (BATCH, TOKENS, HEADS)
    k = wave(*tokens, KEY)
    found = {
        "q": wave(*tokens, KEY),
        "k": k / k.norm(dim=-1, keepdim=True),
        "v": wave(*tokens, VALUE),
        "state": wave(BATCH, HEADS, KEY, VALUE),
        "lr": 0.5 + 0.4 * wave(*tokens),
        "keep": 0.7 + 0.25 * wave(*tokens),
        "keep_key": 0.7 + 0.25 * wave(*tokens, KEY),
    }
    return {name: x.float() for name, x in found.items()}


def slopes(y: Tensor, state: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of (sum of y^2 + sum of state^2) to the leaves that were used."""
    total = y.square().sum() + state.square().sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
