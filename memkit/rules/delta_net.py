"""The delta rule, the memory of DeltaNet (Schlag, Irie, Schmidhuber, arXiv 2102.11174, section 4; parallel over the
tokens: Yang, Wang, Zhang, Shen, Kim, arXiv 2406.06484, section 3).

    S_t = S_{t-1} - beta_t (S_{t-1} k_t - v_t) k_t^T = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T

One gradient step on 1/2 ||S k_t - v_t||^2 at every token, at the weights as they are: exact online learning.
Symbols: beta = `lr`. The engine's matrix is S^T.
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import none
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "delta_net")
def delta_net(*, lr_max: float = 1.0) -> Rule:
    """A matrix that replaces what it holds under a key.

    lr_max: the end of beta's range; 2 allows negative eigenvalues (Grazzi et al., arXiv 2411.12537).
    """
    return Rule(
        name="delta_net",
        memory=linear(),
        objective=l2(scale=0.5),
        optimizer=gradient_descent(lr_max=lr_max),
        retention=none(),
        mini_batch=1,
    )
