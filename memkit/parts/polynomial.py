"""Polynomial features of keys and queries, in front of any memory (ATLAS eq. 10, 22).

A part of the memory and not of `Rule.prepare`: so windows carry the narrow keys, and the residual of ATLAS' memories
adds inputs as wide as the values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from memkit.parts.memory import at_least_one, check_residual
from memkit.registry import Spec, build, register
from memkit.rule import Linear, MemoryModel


def polynomial(x: Tensor, degree: int) -> Tensor:
    """All monomials of x `[..., K]` up to a degree, `[..., C(K + degree, degree)]`.

    Scaled so that phi(q) phi(k)^T = sum_{j <= degree} (q k^T)^j / j!, the beginning of exp(q k^T) (ATLAS eq. 22-23).
    """
    features = [torch.ones_like(x[..., :1])]
    monomials = _monomials if type(x) is Tensor else _monomials.__wrapped__  # fake tensors must not outlive their mode
    for factors, scale in monomials(x.shape[-1], degree, x.dtype, x.device):
        features.append(reduce(torch.mul, [x[..., each] for each in factors]) * scale)
    return torch.cat(features, -1)


@cache
def _monomials(width: int, degree: int, dtype: torch.dtype, device: torch.device) -> list[tuple[list[Tensor], Tensor]]:
    """For each degree from 1: an index tensor per factor, for the entries to multiply, and the monomials' scales."""
    found = []
    for j in range(1, degree + 1):
        chosen = list(combinations_with_replacement(range(width), j))
        scales = [math.prod(map(math.factorial, Counter(one).values())) ** -0.5 for one in chosen]
        factors = torch.tensor(chosen, device=device).unbind(1)
        found.append((list(factors), torch.tensor(scales, dtype=dtype, device=device)))
    return found


@dataclass(frozen=True)
class PolynomialMemory:
    """M(x) = inner(phi(x)); with `residual`, x + inner(phi(x)) for K = V."""

    inner: MemoryModel
    degree: int
    residual: bool

    linear = False

    @property
    def name(self) -> str:
        """The name in the table of rules."""
        inner = getattr(self.inner, "name", type(self.inner).__name__)
        return "x + " * self.residual + f"{inner} of phi_{self.degree}"

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """Those of the inner memory, for keys as wide as the features."""
        if self.residual:
            check_residual(key_dim, value_dim)
        return self.inner.shapes(math.comb(key_dim + self.degree, self.degree), value_dim)

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """Those of the inner memory."""
        return self.inner.constants(math.comb(key_dim + self.degree, self.degree), value_dim)

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Read or write x `[..., K]`."""
        y = self.inner.forward(linear, polynomial(x, self.degree), constants)
        return x + y if self.residual else y


@register("memory", "polynomial")
def polynomial_memory(*, memory: Spec = "mlp", degree: int = 2, residual: bool = False) -> PolynomialMemory:
    """Any memory, of polynomial features of its keys (ATLAS section 3): room for O(K^degree) pairs in a matrix.

    memory: the inner memory, by name or config. Raises `ValueError` for a degree below 1.
    """
    at_least_one("polynomial", degree=degree)
    return PolynomialMemory(build("memory", memory), degree, residual)
