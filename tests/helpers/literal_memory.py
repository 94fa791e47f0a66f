"""One row of a neural memory as a layer, one token after the other, head by head, with nothing of the engine.

    M_t = (1 - alpha_t) M_{t-1} + S_t                              (Titans 13)
    S_t = eta_t S_{t-1} - theta_t grad l(M_{t'}; k_t, v_t)         (14, 16: t' = the last multiple of mini_batch)
    l(M; k, v) = || M(k) - v ||^2                                  (12)

Gradients are derived by hand, for a matrix and for two layers with SiLU between them; torch is here for the
derivatives of the whole only. Of the layer only parameters and sizes are read; the caller says how it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weights = list[Tensor]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() + 1e-6)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / torch.sqrt((x * x).mean() + 1e-6)


def read(weights: Weights, x: Tensor) -> Tensor:
    hidden = x @ weights[0]
    return hidden if len(weights) == 1 else silu(hidden) @ weights[1]


def gradient(weights: Weights, k: Tensor, v: Tensor) -> Weights:
    error = 2 * (read(weights, k) - v)
    if len(weights) == 1:
        return [torch.outer(k, error)]
    z = k @ weights[0]
    s = torch.sigmoid(z)
    derivative = s * (1 + z * (1 - s))
    return [torch.outer(k, (weights[1] @ error) * derivative), torch.outer(silu(z), error)]


def added(sums: Weights, terms: Weights, scale: Tensor) -> Weights:
    return [total + scale * term for total, term in zip(sums, terms, strict=True)]


def zeros(weights: Weights) -> Weights:
    return [torch.zeros_like(weight) for weight in weights]


class Convolution:
    """A depthwise causal convolution of the tokens so far (Titans 4.4); of width 0 it is none."""

    def __init__(self, layer: Any) -> None:
        self.taps = list(layer.taps) if layer.width else []
        self.past: list[Tensor] = []

    def token(self, x: Tensor) -> Tensor:
        if not self.taps:
            return x
        self.past.append(x)
        y = torch.zeros_like(x)
        for tap, earlier in zip(reversed(self.taps), reversed(self.past), strict=False):
            y = y + tap * earlier
        return y


@dataclass
class Head:
    """What one head of one row holds. start: the weights at which gradients are taken; summed: those of a write."""

    weights: Weights
    momenta: Weights
    start: Weights
    summed: Weights

    @classmethod
    def initial(cls, layer: Any, head: int) -> Head:
        weights = [layer.initial[name][head] for name in layer.initial]
        return cls(weights, zeros(weights), weights, zeros(weights))

    def step(self, grads: Weights, gates: dict[str, Tensor]) -> None:
        """Equations 13 and 14."""
        self.momenta = [gates["momentum"] * s - gates["lr"] * g for s, g in zip(self.momenta, grads, strict=True)]
        self.weights = [(1 - gates["decay"]) * w + s for w, s in zip(self.weights, self.momenta, strict=True)]


class Memory:
    """A `neural_memory`: `token` reads, and writes, one token after the other.

    mini_batch: gradients are taken at the weights of its last multiple (Titans 16). every: tokens per write, whose
    gradients are added up (Nested Learning 71; TNT 5). before: a query does not see its own token's write.
    """

    GATES = ("lr", "momentum", "decay", "weight")

    def __init__(self, layer: Any, mini_batch: int = 1, every: int = 1, before: bool = False) -> None:
        self.layer, self.mini_batch, self.every, self.before = layer, mini_batch, every, before
        self.convolution = Convolution(layer.qkv.conv)
        self.restart()

    def restart(self) -> None:
        self.heads = [Head.initial(self.layer, head) for head in range(self.layer.heads)]
        self.written = 0

    def begin(self, tokens: Tensor) -> None:
        """Write the persistent tokens `[P, D]` first (Titans 26, 29)."""
        for token in tokens:
            self.token(token)

    def token(self, x: Tensor, write: bool = True) -> Tensor:
        """y of the next token x `[D]`; without `write` the memory stays as it is."""
        q, k, v = self.project(x)
        reads = []
        for h, head in enumerate(self.heads):
            held = head.weights
            if write:
                self.write(head, k[h], v[h], self.gates(x, h))
            asked = self.asked(h, q[h], k[h], write)
            reads.append(read(held if self.before else head.weights, asked))
        self.written += write
        return self.read_out(x, reads)

    def project(self, x: Tensor) -> list[list[Tensor]]:
        """q, k and v of each head."""
        line = silu(self.convolution.token(self.layer.qkv.linear.weight @ x))
        q, k, v = (list(part.chunk(self.layer.heads)) for part in line.chunk(3))
        return [[unit(z) for z in q], [unit(z) for z in k], v]

    def gates(self, x: Tensor, head: int) -> dict[str, Tensor]:
        """theta, eta, alpha and, in writes of several tokens, each token's weight."""
        names = self.GATES[: 4 if self.every > 1 else 3]
        raw = self.layer.gates.project.weight @ x + self.layer.gates.project.bias
        found = {name: torch.sigmoid(part[head]) for name, part in zip(names, raw.chunk(len(names)), strict=True)}
        found["lr"] = found["lr"] * self.layer.gates.lr_scale[head].exp()
        found["momentum"] = 0.9 * found["momentum"]
        return found

    def write(self, head: Head, k: Tensor, v: Tensor, gates: dict[str, Tensor]) -> None:
        if self.written % max(self.mini_batch, self.every) == 0:
            head.start = head.weights
        grads = gradient(head.start, k, v)
        if self.every == 1:
            return head.step(grads, gates)
        head.summed = added(head.summed, grads, gates["weight"])
        if (self.written + 1) % self.every == 0:
            head.step(head.summed, gates)
            head.summed = zeros(head.summed)

    def asked(self, head: int, q: Tensor, k: Tensor, write: bool) -> Tensor:
        """The query, or another one made of it."""
        return q

    def recall(self, x: Tensor, q: Tensor, held: list[Weights]) -> Tensor:
        """Read weights of an earlier time with a query `[D]` of the caller's own (Titans 21)."""
        queries = q.chunk(self.layer.heads)
        return self.read_out(x, [read(weights, unit(one)) for weights, one in zip(held, queries, strict=True)])

    def read_out(self, x: Tensor, reads: list[Tensor]) -> Tensor:
        """Norm, gate and output projection of what the heads read (Titans 4.4)."""
        normed = torch.cat([rms_norm(y, self.layer.norm.weight) for y in reads])
        return self.layer.out.weight @ (normed * silu(self.layer.gate.weight @ x))

    def held(self) -> list[Tensor]:
        """Weights, momenta and an unfinished write, head by head."""
        return [x for head in self.heads for x in self.of_head(head)]

    def of_head(self, head: Head) -> list[Tensor]:
        return [*head.weights, *head.momenta, *(head.summed if self.every > 1 else [])]
