"""Gated linear attention (Yang, Wang, Shen, Panda, Kim, arXiv 2312.06635, section 4.1).

    S_t = Diag(alpha_t) S_{t-1} + k_t^T v_t,   y_t = q_t S_t

Symbols: alpha_t = 1 - `decay`, a number a key channel. `lr` scales each write and is 1 when not given.
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import dot
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "gla")
def gla() -> Rule:
    """A matrix with dot-product writes and a decay for every key channel and token."""
    return Rule(
        name="gla",
        memory=linear(),
        objective=dot(),
        optimizer=gradient_descent(lr=1.0),
        retention=decay(per="key"),
        mini_batch=1,
    )
