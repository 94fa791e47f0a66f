"""Memora (Behrouz, Razaviyayn, Zhong, Mirrokni, "MIRAS", arXiv 2504.13173, eq. 27).

    W_t = softmax(alpha_t log W_{t-1} - eta_t grad || M(W_{t'}; k_t) - v_t ||^2)
    M(x) = x + LN(gelu(x W_1) W_2), four times as wide inside             (section 5.3)

A constant added to all logits does not change a softmax. So with A_t = alpha_t A_{t-1} - eta_t grad the equation is
W_t = softmax(A_t): A are the raw weights, W the effective ones, taken at the ends of mini-batches; t' is the last
such end. Symbols: alpha = 1 - `decay`, eta = `lr`.

The equation does not say over which entries the softmax runs: here over the inputs of each output, so that every
output is an average of them; `over="matrix"` is the other reading. The paper's gates are per channel; a deep memory
takes them per head.
"""

from __future__ import annotations

from typing import Literal

from memkit.parts.effective import softmax
from memkit.parts.memory import residual_norm
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "memora")
def memora(
    *,
    expansion: int = 4,
    scale: float = 1.0,
    over: Literal["inputs", "matrix"] = "inputs",
    mini_batch: int = 16,
) -> Rule:
    """A squared error, and weights that a KL divergence keeps on a simplex, whose sum is `scale`."""
    return Rule(
        name="memora",
        memory=residual_norm(expansion=expansion),
        objective=l2(),
        optimizer=gradient_descent(),
        retention=decay(),
        effective=softmax(scale=scale, over=over),
        mini_batch=mini_batch,
    )
