"""Memory models: what holds the associations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.registry import register
from memkit.rule import Linear

Activation = Literal["silu", "gelu", "relu"]
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class LinearMemory:
    """A matrix: M(x) = x W. Titans' L_M = 1."""

    linear = True

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """One matrix."""
        return {"w1": (key_dim, value_dim)}

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """None."""
        return {}

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read or write x `[..., K]`."""
        return linear("w1", x)


@dataclass(frozen=True)
class MLPMemory:
    """A multi-layer perceptron: M(x) = s(... s(x W_1) ...) W_depth, with `expansion` x K hidden units.

    residual: M(x) = x + LN(...), whose gain and bias are constants (Titans, proceedings version; TTT-MLP;
    MIRAS section 5.3). It needs K = V.
    """

    depth: int
    expansion: int
    activation: Activation
    residual: bool

    linear = False

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """One matrix a layer, from input to output."""
        if self.residual and key_dim != value_dim:
            raise ValueError(
                f"a residual memory adds its input to its output, so keys and values must be equally wide; "
                f"got K = {key_dim} and V = {value_dim}. Use residual=False."
            )
        hidden = self.expansion * key_dim
        widths = [key_dim, *[hidden] * (self.depth - 1), value_dim]
        return {f"w{i + 1}": (widths[i], widths[i + 1]) for i in range(self.depth)}

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """Gain and bias of the layer norm, if there is one."""
        return {"gain": torch.ones(value_dim), "bias": torch.zeros(value_dim)} if self.residual else {}

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read or write x `[..., K]`."""
        hidden = linear("w1", x)
        for i in range(2, self.depth + 1):
            hidden = linear(f"w{i}", ACTIVATIONS[self.activation](hidden))
        if not self.residual:
            return hidden
        return x + F.layer_norm(hidden, hidden.shape[-1:]) * constants["gain"] + constants["bias"]


@register("memory", "linear")
def linear() -> LinearMemory:
    """A matrix per head."""
    return LinearMemory()


@register("memory", "mlp")
def mlp(
    *, depth: int = 2, expansion: int = 4, activation: Activation = "silu", residual: bool = False
) -> LinearMemory | MLPMemory:
    """A multi-layer perceptron; depth 1 without residual is a matrix per head.

    Raises `ValueError` for a depth or expansion below 1.
    """
    for name, value in (("depth", depth), ("expansion", expansion)):
        if value < 1:
            raise ValueError(f"memory 'mlp': {name} must be >= 1; got {value}.")
    if depth == 1 and not residual:
        return LinearMemory()
    return MLPMemory(depth, expansion, activation, residual)
