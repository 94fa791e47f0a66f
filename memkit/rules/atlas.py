"""Atlas (Behrouz et al., arXiv 2505.23735, eq. 32-33, 39-43).

    M_t = alpha_t M_{t-1} - eta_t NewtonSchulz_5(S_t)                                            (32)
    S_t = theta_t S_{t-1} + grad sum_{i=t-c+1..t} gamma_i || M_{t'}(phi(k_i)) - v_i ||^2         (33)
    M(x) = x + s(phi(x) W_1) W_2, or x + (s(phi(x) W_1) * phi(x) W_3) W_2 (Atlas++)              (42, 43)

t' is the last multiple of the mini-batch: with it the S_t of a mini-batch do not depend on each other's weights, so
they are all gathered and orthogonalized at once, which is the paper's own parallel form (39-41) and exact. It holds
a matrix for each token of a mini-batch. Cheaper is one step every n tokens: mini_batch=1, window=1, update_every=n,
as in the rule "lact".

Symbols: alpha = 1 - `decay`, eta = `lr`, theta = `momentum`, gamma = `weight`, c = `window`, 5 = `steps`. phi, its
degree and c: see the rule "omega".
"""

from __future__ import annotations

from memkit.parts.muon import muon
from memkit.parts.objective import l2
from memkit.parts.polynomial import polynomial_memory
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "atlas")
def atlas(
    *,
    window: int = 8,
    degree: int = 1,
    expansion: int = 4,
    gated: bool = False,
    residual: bool = True,
    steps: int = 5,
    mini_batch: int = 16,
    update_every: int = 1,
) -> Rule:
    """The last `window` tokens learned by Muon.

    degree: of the features in front of the memory; 1 is keys with a constant beside them, the paper's ablation but for
    the constant. 2 makes the matrices to orthogonalize K / 2 times larger: for narrow heads.
    gated: Atlas++. steps: of Newton-Schulz.
    """
    kind = {"name": "gated_mlp"} if gated else {"name": "mlp", "activation": "gelu"}
    return Rule(
        name="atlas",
        memory=polynomial_memory(memory={**kind, "expansion": expansion}, degree=degree, residual=residual),
        objective=l2(),
        optimizer=muon(steps=steps),
        retention=decay(),
        window=window,
        mini_batch=mini_batch,
        update_every=update_every,
    )
