"""Memory models: maps from keys to values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.parts.norm import layer_norm
from memkit.parts.silu import silu
from memkit.registry import register
from memkit.rule import Linear

Activation = Literal["silu", "gelu", "relu"]
ACTIVATIONS = {"silu": silu, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class LinearMemory:
    """A matrix: M(x) = x W. Titans' L_M = 1."""

    name = "matrix"
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
    """A multi-layer perceptron: M(x) = s(... s(x W_1) ...) W_depth, with `expansion` x min(K, V) hidden units.

    residual: M(x) = x + LN(...), with gain and bias as constants (Titans, proceedings version; TTT-MLP; MIRAS
    section 5.3). It needs K = V >= 3.
    """

    depth: int
    expansion: int
    activation: Activation
    residual: bool

    linear = False

    @property
    def name(self) -> str:
        """The name in the table of rules."""
        mlp = f"MLP-{self.depth}"
        return f"x + LN({mlp})" if self.residual else mlp

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """One matrix per layer, from input to output."""
        if self.residual:
            check_residual(key_dim, value_dim)
            _check_norm(value_dim)
        hidden = self.expansion * min(key_dim, value_dim)
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
        return x + layer_norm(hidden) * constants["gain"] + constants["bias"]


def check_residual(key_dim: int, value_dim: int) -> None:
    """Raise `ValueError` unless K = V, to add inputs to outputs."""
    if key_dim != value_dim:
        raise ValueError(
            f"a residual memory adds its input to its output, so keys and values must be equally wide; "
            f"got K = {key_dim} and V = {value_dim}. Use residual=False."
        )


def _check_norm(value_dim: int) -> None:
    """Raise `ValueError` below 3 values: there a layer norm is a step function."""
    if value_dim < 3:
        raise ValueError(
            f"a layer norm of {value_dim} value(s) says no more than which is larger, so a memory with one needs "
            "V >= 3. Use wider heads or residual=False."
        )


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
    at_least_one("mlp", depth=depth, expansion=expansion)
    if depth == 1 and not residual:
        return LinearMemory()
    return MLPMemory(depth, expansion, activation, residual)


@register("memory", "residual_norm")
def residual_norm(*, depth: int = 2, expansion: int = 4, activation: Activation = "gelu") -> MLPMemory:
    """M(x) = x + LN(MLP(x)), the memory of TTT-MLP and of MIRAS' three models (section 5.3); needs K = V.

    Raises `ValueError` for a depth or expansion below 1.
    """
    at_least_one("residual_norm", depth=depth, expansion=expansion)
    return MLPMemory(depth, expansion, activation, residual=True)


def at_least_one(memory: str, **sizes: int) -> None:
    """Raise `ValueError` for an option below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"memory {memory!r}: {name} must be >= 1; got {value}.")
