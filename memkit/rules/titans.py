"""Titans' neural memory (Behrouz, Zhong, Mirrokni, arXiv 2501.00663, eq. 12-16).

    M_t = (1 - alpha_t) M_{t-1} + S_t                              (13)
    S_t = eta_t S_{t-1} - theta_t grad l(M_{t'}; k_t, v_t)         (14, 16: t' = the last multiple of mini_batch)
    l(M; k, v) = || M(k) - v ||^2                                  (12)

Symbols: theta = `lr`, eta = `momentum`, alpha = `decay`.
"""

from __future__ import annotations

from typing import Literal

from memkit.parts.memory import Activation, mlp
from memkit.parts.objective import l2
from memkit.registry import Spec, build, register
from memkit.rule import Rule


@register("rule", "titans")
def titans(
    *,
    depth: int = 2,
    expansion: int = 4,
    activation: Activation = "silu",
    residual: bool = False,
    optimizer: Spec = "momentum",
    retention: Spec = "decay",
    point: Spec = "weights",
    mini_batch: int = 16,
    read: Literal["after", "before"] = "after",
    surprise_limit: float | None = None,
) -> Rule:
    """A deep memory written by gradient descent with momentum and weight decay (Titans).

    depth, expansion, activation, residual: the memory; depth 1 is a matrix per head.
    optimizer, retention: other parts by name; "gradient_descent" and "none" are the ablations of Titans Table 5.
    point: where gradients are taken; "lookahead" is Nesterov's momentum.
    surprise_limit: a departure from the paper that bounds each token's gradient norm; None is the paper.
    """
    return Rule(
        name="titans",
        memory=mlp(depth=depth, expansion=expansion, activation=activation, residual=residual),
        objective=l2(),
        optimizer=build("optimizer", optimizer),
        retention=build("retention", retention),
        point=build("point", point),
        mini_batch=mini_batch,
        read=read,
        surprise_limit=surprise_limit,
    )
