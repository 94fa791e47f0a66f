"""One row of causal attention, one query and one head at a time (Titans Fig. 3b); positions turn complex pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from literal_memory import Convolution

Pair = tuple[Tensor, Tensor]
"""Keys and values of one token, `[H, K]`."""


def rotated(x: Tensor, position: int) -> Tensor:
    """Channels i and i + K/2 of x `[H, K]` are one complex number, turned by position * 10000^(-2 i / K)."""
    first, second = x.chunk(2, -1)
    angles = [position * 10000.0 ** (-i / first.shape[-1]) for i in range(first.shape[-1])]
    turned = torch.complex(first, second) * torch.exp(1j * torch.tensor(angles, dtype=x.dtype))
    return torch.cat([turned.real, turned.imag], -1)


def attend(q: Tensor, context: list[Pair]) -> Tensor:
    """sum_j softmax_j(q . k_j / sqrt(K)) v_j, of queries `[H, K]`: `[H K]`."""
    total, sums = torch.zeros_like(q), torch.zeros_like(q[:, :1])
    for k, v in context:
        weight = torch.exp((q * k).sum(-1, keepdim=True) / math.sqrt(q.shape[-1]))
        total, sums = total + weight * v, sums + weight
    return (total / sums).flatten()


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(heads, -1)


class Attention:
    """Attention over the last `window` tokens (None: all), and over a prefix that everyone sees, without position."""

    def __init__(self, layer: Any, window: int | None) -> None:
        self.layer, self.window = layer, window
        self.convolution = Convolution(layer.conv)
        self.prefix: list[Pair] = []
        self.context: list[Pair] = []

    def begin(self, tokens: Tensor) -> None:
        """Persistent tokens `[P, D]` are the prefix."""
        for token in tokens:
            k, v = (split(z, self.layer.heads) for z in (self.layer.to_kv.weight @ token).chunk(2))
            self.prefix.append((k, v))

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        """y of the next token x `[D]`; attention always looks at what there was."""
        position = len(self.context)
        line = torch.cat([self.layer.to_q.weight @ x, self.layer.to_kv.weight @ x])
        q, k, v = (split(z, self.layer.heads) for z in self.convolution.token(line).chunk(3))
        self.context.append((rotated(k, position), v))
        first = 0 if self.window is None else max(0, position + 1 - self.window)
        return self.layer.to_out.weight @ attend(rotated(q, position), self.prefix + self.context[first:])
