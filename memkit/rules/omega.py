"""OmegaNet (Behrouz et al., "ATLAS", arXiv 2505.23735, eq. 9, 10, 16).

    M_t = alpha_t M_{t-1} - eta_t grad sum_{i=t-c+1..t} gamma_i || M(phi(k_i)) - v_i ||^2        (10; eta of 16)
    M(x) = x + s(phi(x) W_1) W_2, four times as wide inside                                      (42)

with all gradients at the weights of the last mini-batch (16). phi: all monomials up to a degree (22). Symbols:
alpha = 1 - `decay`, eta = `lr`, gamma = `weight`, c = `window`. The defaults of c and of the degree are ours.
M(phi(x)) with the residual of (42) is read as x + MLP(phi(x)), as phi(x) is wider than the values.
"""

from __future__ import annotations

from memkit.parts.memory import Activation
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.polynomial import polynomial_memory
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Rule


@register("rule", "omega")
def omega(
    *,
    window: int = 8,
    degree: int = 2,
    depth: int = 2,
    expansion: int = 4,
    activation: Activation = "gelu",
    residual: bool = True,
    mini_batch: int = 16,
) -> Rule:
    """Each write learns the last `window` tokens, each as much as its gate says.

    degree: of the features in front of the memory; 1 is keys with a constant beside them.
    """
    inner = {"name": "mlp", "depth": depth, "expansion": expansion, "activation": activation}
    return Rule(
        name="omega",
        memory=polynomial_memory(memory=inner, degree=degree, residual=residual),
        objective=l2(),
        optimizer=gradient_descent(),
        retention=decay(),
        window=window,
        mini_batch=mini_batch,
    )
