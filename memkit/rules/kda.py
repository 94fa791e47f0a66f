"""Kimi delta attention (Kimi Team, arXiv 2510.26692, eq. 1).

    S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,   y_t = S_t^T q_t

The gated delta rule with a decay for every key channel: forget first, then take one gradient step on
1/2 ||k_t^T S - v_t||^2. Symbols: beta = `lr`, alpha = 1 - `decay`.
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule, at_decayed


@register("rule", "kda")
def kda(*, lr_max: float = 1.0) -> Rule:
    """A matrix whose key channels fade each at its own pace, and that replaces what it holds under a key.

    lr_max: the end of beta's range.
    """
    return Rule(
        name="kda",
        memory=linear(),
        objective=l2(scale=0.5),
        optimizer=gradient_descent(lr_max=lr_max),
        retention=decay(per="key"),
        point=at_decayed,
        mini_batch=1,
    )
