"""TTT-Linear (Sun et al., arXiv 2407.04620).

    W_t = W_{t-1} - eta_t grad l(W_{t'}; x_t),   t' = the last multiple of mini_batch    (section 2.4)
    l(W; x_t) = ||f(k_t; W) - v_t||^2                                                     (4)
    z_t = f(q_t; W_t)                                                                     (5)
    f(x; W) = x + LN(x W)                                                                 (section 2.7)

Symbols: eta = `lr`, the paper's sigmoid times a base of 1; gain and bias of the layer norm are constants, learned in
the outer loop like W_0. Keys and values are equally wide.
"""

from __future__ import annotations

from memkit.parts.memory import mlp
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import none
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "ttt_linear")
def ttt_linear(*, mini_batch: int = 16) -> Rule:
    """A matrix inside of a residual layer norm, written by mini-batches of gradients.

    mini_batch: 16 in the paper.
    """
    return Rule(
        name="ttt_linear",
        memory=mlp(depth=1, residual=True),
        objective=l2(),
        optimizer=gradient_descent(),
        retention=none(),
        mini_batch=mini_batch,
    )
