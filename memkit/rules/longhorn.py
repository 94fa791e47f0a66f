"""Longhorn: the implicit step of online regression (Liu et al., arXiv 2407.14207, Theorem 3.1).

    S_t = argmin_S ||S - S_{t-1}||^2 + beta_t ||S k_t - x_t||^2
        = S_{t-1} (I - epsilon_t k_t k_t^T) + epsilon_t x_t k_t^T,   epsilon_t = beta_t / (1 + beta_t k_t^T k_t)

The delta rule with a step that cannot overshoot, for any beta >= 0 and any key. Symbols: beta = `lr`, one number per
head (the paper has one per value channel, as heads of V = 1 do), x = value. The engine's matrix is S^T. The paper's
kernel keeps the diagonal of k_t k_t^T only; this is the exact step.
"""

from __future__ import annotations

from memkit.parts.memory import linear
from memkit.parts.objective import l2
from memkit.parts.optimizer import gradient_descent
from memkit.parts.retention import none
from memkit.registry import register
from memkit.rule import Rule, Tokens


def implicit_step(tokens: Tokens) -> Tokens:
    """epsilon = beta / (1 + beta k^T k) in place of beta."""
    beta = tokens.gates["lr"]
    epsilon = beta / (1 + beta * tokens.k.square().sum(-1))
    return tokens._replace(gates={**tokens.gates, "lr": epsilon})


@register("rule", "longhorn")
def longhorn(*, lr_max: float = 1.0) -> Rule:
    """A matrix that moves just so far that the new pair and the old memory are both respected.

    lr_max: the end of beta's range; the paper takes a sigmoid.
    """
    return Rule(
        name="longhorn",
        memory=linear(),
        objective=l2(scale=0.5),
        optimizer=gradient_descent(lr_max=lr_max),
        retention=none(),
        prepare=implicit_step,
        mini_batch=1,
    )
