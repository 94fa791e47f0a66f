"""Yaad (Behrouz, Razaviyayn, Zhong, Mirrokni, "MIRAS", arXiv 2504.13173, eq. 15, 26).

    W_t = alpha_t W_{t-1} - eta_t g_t                                     (26)
    g_t = grad 1/2 ||e||^2             if ||e|| <= delta_t                (15)
          grad delta_t ||e||           otherwise,     e = M(k_t) - v_t
    M(x) = x + LN(gelu(x W_1) W_2), four times as wide inside             (section 5.3)

with gradients at the weights of the last mini-batch (28). Symbols: alpha = 1 - `decay`, eta = `lr`, delta = `delta`.
The paper's gates are per channel; a deep memory takes them per head.
"""

from __future__ import annotations

from typing import Literal

from memkit.parts.memory import residual_norm
from memkit.parts.objective import huber
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "yaad")
def yaad(*, expansion: int = 4, of: Literal["norm", "entries"] = "norm", mini_batch: int = 16) -> Rule:
    """A Huber loss whose corner depends on the token, and weight decay.

    of: whether the corner looks at the error's norm (eq. 15) or at its entries (eq. 13).
    """
    return Rule(
        name="yaad",
        memory=residual_norm(expansion=expansion),
        objective=huber(of=of),
        optimizer=gradient_descent(),
        retention=decay(),
        mini_batch=mini_batch,
    )
