"""Retention, the memory of RetNet (Sun et al., arXiv 2307.08621).

    S_t = gamma S_{t-1} + k_t^T v_t,   y_t = q_t S_t            (6)
    gamma_h = 1 - 2^(-5-h) for heads h = 0, 1, ...              (8)

Symbols: gamma = 1 - `decay`. The decay is the same at every token, one number a head: leave the gate `decay` out,
and it is the paper's; give it, `[B, T, H]`, and it is yours. `lr` scales each write and is 1 when not given.
The rotation of queries and keys (the paper's Theta) belongs to their projections.
"""

from __future__ import annotations

from dataclasses import replace

from memkit.parts.memory import linear
from memkit.parts.objective import dot
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import DECAY, decay
from memkit.registry import register
from memkit.rule import Rule


def fixed_decays(heads: int) -> list[float]:
    """1 - gamma of each head, 2^(-5-h)   (eq. 8)."""
    return [2.0 ** (-5 - h) for h in range(heads)]


@register("rule", "retnet")
def retnet() -> Rule:
    """A matrix with dot-product writes and one fixed decay a head."""
    return Rule(
        name="retnet",
        memory=linear(),
        objective=dot(),
        optimizer=gradient_descent(lr=1.0),
        retention=replace(decay(), gates=(replace(DECAY, default=fixed_decays),)),
        mini_batch=1,
    )
