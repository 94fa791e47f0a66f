"""From tokens to a rule's gates: bounded, data-dependent, per head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from memkit.rule import Gate, Rule

MOMENTUM_MAX = 0.9
LR_MAX = 0.5
BIAS = {"lr": 0.0, "momentum": 0.0, "decay": -5.0, "weight": 4.0}
"""Initial bias of a gate's sigmoid: half open, little forgotten, and every token of a write in full.

With decay at -4 half of a memory is gone after 38 tokens: a held-out loss 0.13 bits per byte worse on text. At -6 some
deep memories diverge on random inputs a hundred times as large as usual (5 of 480; none at -5).
"""


class GateProjection(nn.Module):
    """x `[B, T, D]` -> every gate of a rule, within its declared range.

    momentum = 0.9 sigmoid(.), decay = sigmoid(. - 5), weight = sigmoid(. + 4), lr = scale * sigmoid(.). The learnable
    scale per head starts at the largest rate stable for a linear memory under any stream: gradients of b tokens at the
    same weights (a mini-batch, a write of several tokens, a window) add up, momentum m multiplies them by 1 / (1 - m),
    and the squared error carries a factor 2, so scale = 0.5 (1 - 0.9) / b. A gate of another name, or an lr with a
    finite range (the beta of delta rules), is low + (high - low) sigmoid(.), or low + softplus(.) without a finite end.
    Gates with a default of their own are not projected.
    """

    def __init__(self, dim: int, heads: int, key_dim: int, value_dim: int, rule: Rule) -> None:
        super().__init__()
        self.heads = heads
        # `weight` has a default for callers of the engine; here it is learned.
        self.gates = tuple(gate for gate in rule.gates.values() if gate.default is None or gate.name == "weight")
        widths = {"head": 1, "key": key_dim, "value": value_dim, "pair": rule.pairs}
        self.widths = [widths[gate.per] for gate in self.gates]
        if not self.gates:  # all with defaults, as in linear attention and RetNet
            return
        self.project = nn.Linear(dim, heads * sum(self.widths))
        with torch.no_grad():
            self.project.weight.mul_(0.1)  # gates begin near their biases, whatever the token
            starts = [
                torch.full((heads * w,), BIAS.get(g.name, 0.0)) for g, w in zip(self.gates, self.widths, strict=True)
            ]
            self.project.bias.copy_(torch.cat(starts))
        if any(gate.name == "lr" and math.isinf(gate.high) for gate in self.gates):
            self.lr_scale = nn.Parameter(torch.full((heads,), math.log(stable_lr(rule))))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Gates in float32 or better: half precision cannot tell a decay of 1e-4 from none."""
        if not self.gates:
            return {}
        raw = self.project(x)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        parts = raw.split([self.heads * width for width in self.widths], -1)
        return {gate.name: self._bound(gate, part) for gate, part in zip(self.gates, parts, strict=True)}

    def _bound(self, gate: Gate, raw: Tensor) -> Tensor:
        if gate.per != "head":
            raw = raw.unflatten(-1, (self.heads, -1))
        if gate.name == "lr" and math.isinf(gate.high):
            scale = self.lr_scale.to(raw.dtype).exp()
            return (scale if gate.per == "head" else scale[:, None]) * raw.sigmoid()
        if gate.name == "momentum":
            return MOMENTUM_MAX * raw.sigmoid()
        if math.isinf(gate.high):
            return gate.low + nn.functional.softplus(raw)
        return gate.low + (gate.high - gate.low) * raw.sigmoid()


def stable_lr(rule: Rule) -> float:
    """Return the largest learning rate with a linear memory stable under any stream of unit keys."""
    inertia = 1 - MOMENTUM_MAX if "momentum" in rule.gates else 1.0
    together = rule.period * rule.window if rule.sees_weights else 1
    return LR_MAX * inertia / together
