"""A neural memory as a layer, one token after the other, one row and head at a time, with nothing of the engine.

Gradients of || M(k) - v ||^2 are derived by hand, for a matrix and for two layers with SiLU between them; torch
is here for the derivatives of the whole only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weights = list[Tensor]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def read(weights: Weights, x: Tensor) -> Tensor:
    hidden = x @ weights[0]
    return hidden if len(weights) == 1 else silu(hidden) @ weights[1]


def gradient(weights: Weights, k: Tensor, v: Tensor) -> Weights:
    error = 2 * (read(weights, k) - v)
    if len(weights) == 1:
        return [torch.outer(k, error)]
    z = k @ weights[0]
    s = torch.sigmoid(z)
    slope = s * (1 + z * (1 - s))
    return [torch.outer(k, (weights[1] @ error) * slope), torch.outer(silu(z), error)]


@dataclass
class Head:
    """What one head of one row knows: the update of Titans, eq. 13 and 14."""

    weights: Weights
    momenta: Weights

    @classmethod
    def initial(cls, layer: Any, head: int) -> Head:
        weights = [layer.initial[name][head] for name in layer.initial]
        return cls(weights, [torch.zeros_like(weight) for weight in weights])

    def step(self, grads: Weights, gates: dict[str, Tensor]) -> None:
        self.momenta = [gates["momentum"] * s - gates["lr"] * g for s, g in zip(self.momenta, grads, strict=True)]
        self.weights = [(1 - gates["decay"]) * w + s for w, s in zip(self.weights, self.momenta, strict=True)]


def tokens(layer: Any, x: Tensor, head: int) -> list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:
    """q, k, v and gates of every token of x `[T, D]`, for one head."""
    dim, width = layer.dim, layer.width
    found = []
    for t in range(len(x)):
        line = torch.zeros(3 * dim, dtype=x.dtype)
        for back in range(min(t + 1, layer.qkv.conv.width)):
            line = line + layer.qkv.conv.taps[-1 - back] * (layer.qkv.linear.weight @ x[t - back])
        q, k, v = (silu(line)[i * dim + head * width :][:width] for i in range(3))
        q, k = (z / torch.sqrt((z * z).sum() + 1e-6) for z in (q, k))
        raw = (layer.gates.project.weight @ x[t] + layer.gates.project.bias).unflatten(0, (-1, layer.heads))[:, head]
        gates = {name: torch.sigmoid(one) for name, one in zip(layer.rule.gates, raw, strict=True)}
        gates["lr"] = gates["lr"] * layer.gates.lr_scale[head].exp()
        gates["momentum"] = 0.9 * gates["momentum"]
        found.append((q, k, v, gates))
    return found


def read_out(layer: Any, x: Tensor, heads: list[Tensor]) -> Tensor:
    """Norm, gate and output projection of what the heads read of tokens x `[T, D]`."""
    normed = [y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6) * layer.norm.weight for y in heads]
    return (torch.cat(normed, -1) * silu(x @ layer.gate.weight.T)) @ layer.out.weight.T
