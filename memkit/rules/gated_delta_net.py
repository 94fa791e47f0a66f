"""The gated delta rule (Yang, Kautz, Hatamizadeh, arXiv 2412.06464, eq. 10).

    S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T

Forget first, then take one gradient step on 1/2 ||S k_t - v_t||^2: the gradient is taken at alpha_t S_{t-1}.
Symbols: beta = `lr`, alpha = 1 - `decay`. The engine's matrix is S^T.
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule, at_decayed


@register("rule", "gated_delta_net")
def gated_delta_net(*, lr_max: float = 1.0) -> Rule:
    """A matrix that fades, and replaces what it holds under a key.

    lr_max: the end of beta's range; 2 allows negative eigenvalues (Grazzi et al., arXiv 2411.12537).
    """
    return Rule(
        name="gated_delta_net",
        memory=linear(),
        objective=l2(scale=0.5),
        optimizer=gradient_descent(lr_max=lr_max),
        retention=decay(),
        point=at_decayed,
        mini_batch=1,
    )
