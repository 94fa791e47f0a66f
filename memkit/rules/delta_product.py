"""DeltaProduct: several delta steps a token (Siems et al., arXiv 2502.10297, section 3).

    H_{t,j} = (I - beta_{t,j} k_{t,j} k_{t,j}^T) H_{t,j-1} + beta_{t,j} k_{t,j} v_{t,j}^T,   j = 1 ... n
    H_{t,0} = alpha_t H_{t-1},   H_t = H_{t,n},   y_t = H_t^T q_t

A token's transition is a product of n generalized Householder matrices, so with beta up to 2 it can rotate and
permute. Symbols: n = `pairs`, beta_{t,j} = `lr` `[B, T, H, n]`, alpha = 1 - `decay`; keys lie side by side,
`[B, T, H, n K]`, and values likewise.
"""

from __future__ import annotations

import torch

from memkit.parts.memory import linear
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.prepare import one_after_the_other
from memkit.parts.retention import decay, none
from memkit.registry import register
from memkit.rule import Rule, Tokens, at_decayed, at_weights


def steps_of_pairs(tokens: Tokens) -> Tokens:
    """Each pair as a step; a token forgets once, at its first."""
    q, k, v, gates = tokens
    pairs = gates["lr"].shape[-1]
    steps = {"lr": one_after_the_other(gates["lr"].unbind(-1))}
    if "decay" in gates:
        later = [torch.zeros_like(gates["decay"])] * (pairs - 1)
        steps["decay"] = one_after_the_other([gates["decay"], *later])
    q, k, v = (one_after_the_other(x) for x in ([q] * pairs, k.chunk(pairs, -1), v.chunk(pairs, -1)))
    return Tokens(q, k, v, steps)


@register("rule", "delta_product")
def delta_product(*, pairs: int = 2, gated: bool = True, lr_max: float = 2.0) -> Rule:
    """A matrix that makes several replacements a token.

    pairs: delta steps a token. gated: with the forget gate of Gated DeltaProduct. lr_max: the end of beta's range.
    """
    return Rule(
        name="delta_product",
        memory=linear(),
        objective=l2(scale=0.5),
        optimizer=gradient_descent(lr_max=lr_max, per="pair"),
        retention=decay() if gated else none(),
        point=at_decayed if gated else at_weights,
        prepare=steps_of_pairs,
        pairs=pairs,
        steps=pairs,
        mini_batch=1,
    )
