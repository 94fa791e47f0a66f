"""A matrix of low rank as a memory: a small state for wide keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from memkit.parts.memory import at_least_one
from memkit.registry import register
from memkit.rule import Linear


@dataclass(frozen=True)
class LowRankMemory:
    """M(x) = x D U with D `[K, rank]` and U `[rank, V]`. Linear in x, but not in its weights."""

    rank: int

    linear = False

    @property
    def name(self) -> str:
        """The name in the table of rules."""
        return f"rank-{self.rank} matrix"

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """Down, then up."""
        return {"down": (key_dim, self.rank), "up": (self.rank, value_dim)}

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """None."""
        return {}

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read or write x `[..., K]`."""
        return linear("up", linear("down", x))


@register("memory", "low_rank")
def low_rank(*, rank: int = 8) -> LowRankMemory:
    """A product of two thin matrices; both learn. Raises `ValueError` for a rank below 1."""
    at_least_one("low_rank", rank=rank)
    return LowRankMemory(rank)
