"""TTT-MLP (Sun et al., arXiv 2407.04620, eq. 4-6).

    W_t = W_{t-1} - eta_t grad l(W_{t'}; k_t, v_t)        (6; t' = the last multiple of the mini-batch, 16)
    l(W; k, v) = || f(k; W) - v ||^2                      (4)
    z_t = f(q_t; W_t)                                     (5)
    f(x) = x + LN(gelu(x W_1) W_2), four times as wide inside

Symbols: eta = `lr`, which the paper keeps at 0.1 sigmoid(.) and its code divides by the width K. The code's biases
are left out: the paper has none.
"""

from __future__ import annotations

from memkit.parts.memory import residual_norm
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import none
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "ttt_mlp")
def ttt_mlp(*, expansion: int = 4, mini_batch: int = 16) -> Rule:
    """A perceptron of two layers with residual and norm, written by gradient descent, forgetting nothing."""
    return Rule(
        name="ttt_mlp",
        memory=residual_norm(expansion=expansion),
        objective=l2(),
        optimizer=gradient_descent(),
        retention=none(),
        mini_batch=mini_batch,
    )
