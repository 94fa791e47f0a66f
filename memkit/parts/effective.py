"""Effective weights: raw weights with a linear update, and a nonlinear map of them at each mini-batch's start.

Follow-the-regularized-leader and mirror descent have this form: gradients gather in a raw weight A, and the memory
uses W = f(A). So a block of tokens still unrolls with scalars, and f is applied once per mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from memkit.registry import register

SMALLEST = 0.25
"""The smallest norm to divide by. The papers have none, and their W grows without limit as A gets small."""


@dataclass(frozen=True)
class LqNormalized:
    """W = A / ||A||_q^(q-2), with the norm over all entries of a matrix (MIRAS eq. 24).

    Norms below 1/4 count as 1/4: the equation has no limit at A = 0.
    """

    q: float

    @property
    def name(self) -> str:
        """The name in the table of rules."""
        return f"l{self.q:g}"

    def __call__(self, weight: Tensor) -> Tensor:
        """Raw weight `[..., in, out]` -> effective weight."""
        power = weight.abs().pow(self.q).sum((-2, -1), keepdim=True)
        return weight / power.clamp(min=SMALLEST**self.q).pow((self.q - 2) / self.q)


@dataclass(frozen=True)
class Softmax:
    """W = scale * softmax(A): weights on a simplex, by a KL divergence (MIRAS eq. 21, 27).

    over: "inputs": the weights of each output sum to `scale`; "matrix": all entries together.
    """

    scale: float
    over: Literal["inputs", "matrix"]

    name = "KL"

    def __call__(self, weight: Tensor) -> Tensor:
        """Raw weight `[..., in, out]` -> effective weight."""
        if self.over == "inputs":
            return self.scale * weight.softmax(-2)
        return self.scale * weight.flatten(-2).softmax(-1).view_as(weight)


@dataclass(frozen=True)
class SoftThreshold:
    """W = sign(A) max(|A| - threshold, 0): few entries are used, and A keeps all (MIRAS eq. 23)."""

    threshold: float

    name = "l1"

    def __call__(self, weight: Tensor) -> Tensor:
        """Raw weight -> effective weight."""
        return weight.sign() * F.relu(weight.abs() - self.threshold)


@register("effective", "lq")
def lq(*, q: float = 4.0) -> LqNormalized:
    """Weights divided by their l_q norm to the power q - 2. Raises `ValueError` for q below 2."""
    if not q >= 2:
        raise ValueError(f"effective 'lq': q must be >= 2; got {q}.")
    return LqNormalized(q)


@register("effective", "softmax")
def softmax(*, scale: float = 1.0, over: Literal["inputs", "matrix"] = "inputs") -> Softmax:
    """Weights on a simplex; writes add to their logarithms. Raises `ValueError` unless scale > 0."""
    if not scale > 0:
        raise ValueError(f"effective 'softmax': scale must be > 0; got {scale}.")
    return Softmax(scale, over)


@register("effective", "soft_threshold")
def soft_threshold(*, threshold: float = 0.01) -> SoftThreshold:
    """Small weights count as 0. Raises `ValueError` for a negative threshold."""
    if not threshold >= 0:
        raise ValueError(f"effective 'soft_threshold': threshold must be >= 0; got {threshold}.")
    return SoftThreshold(threshold)
