"""Mamba-2's state-space duality as a rule (Dao, Gu, arXiv 2405.21060).

    h_t = a_t h_{t-1} + dt_t B_t x_t^T,   y_t = C_t^T h_t

A matrix written by the dot objective, without erasing: B_t = key, x_t = value, C_t = query, dt_t = `lr`,
a_t = 1 - `decay` (a scalar per head and token).
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import dot
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "mamba2")
def mamba2() -> Rule:
    """Mamba-2's recurrence: a matrix, dot-product writes, one decay per head and token."""
    return Rule(
        name="mamba2",
        memory=linear(),
        objective=dot(),
        optimizer=gradient_descent(),
        retention=decay(),
        mini_batch=1,
    )
