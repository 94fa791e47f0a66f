"""Moneta (Behrouz, Razaviyayn, Zhong, Mirrokni, "MIRAS", arXiv 2504.13173, eq. 11, 24).

    A_t = alpha_t A_{t-1} - eta_t grad || M(W_{t'}; k_t) - v_t ||_p^p     (24, 11)
    W_t = A_t / || A_t ||_q^(q-2)                                         (24)
    M(x) = x + LN(gelu(x W_1) W_2), four times as wide inside             (section 5.3)

with (p, q) = (3, 4). W is taken at the ends of mini-batches only, as there (section 5.4, parallel training); t' is
the last one. Symbols: A = the raw weights, W = the effective ones, alpha = 1 - `decay`, eta = `lr`. The paper's
gates are per channel; a deep memory takes them per head.
"""

from __future__ import annotations

from memkit.parts.effective import lq
from memkit.parts.memory import residual_norm
from memkit.parts.objective import lp
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "moneta")
def moneta(*, expansion: int = 4, p: float = 3.0, q: float = 4.0, mini_batch: int = 16) -> Rule:
    """An l_p loss, and weights normalised by their l_q norm."""
    return Rule(
        name="moneta",
        memory=residual_norm(expansion=expansion),
        objective=lp(p=p),
        optimizer=gradient_descent(),
        retention=decay(),
        effective=lq(q=q),
        mini_batch=mini_batch,
    )
