"""The gated perceptron (SwiGLU) as a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from memkit.parts.memory import ACTIVATIONS, Activation, at_least_one
from memkit.registry import register
from memkit.rule import Linear


@dataclass(frozen=True)
class GatedMLPMemory:
    """M(x) = (s(x W_1) * x W_3) W_2, with `expansion` x min(K, V) hidden units."""

    expansion: int
    activation: Activation

    name = "gated MLP"
    linear = False

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """Two matrices in parallel, then one."""
        hidden = self.expansion * min(key_dim, value_dim)
        return {"w1": (key_dim, hidden), "w3": (key_dim, hidden), "w2": (hidden, value_dim)}

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """None."""
        return {}

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read or write x `[..., K]`."""
        return linear("w2", ACTIVATIONS[self.activation](linear("w1", x)) * linear("w3", x))


@register("memory", "gated_mlp")
def gated_mlp(*, expansion: int = 4, activation: Activation = "silu") -> GatedMLPMemory:
    """A SwiGLU memory (LaCT eq. 6; ATLAS eq. 43 adds a residual, see "polynomial").

    Raises `ValueError` for an expansion below 1.
    """
    at_least_one("gated_mlp", expansion=expansion)
    return GatedMLPMemory(expansion, activation)
