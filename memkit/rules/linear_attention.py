"""Linear attention (Katharopoulos, Vyas, Pappas, Fleuret, arXiv 2006.16236, eq. 16-20).

    S_t = S_{t-1} + phi(k_t) v_t^T,   y_t = S_t^T phi(q_t)                   (18, 20 without its normalizer)
    phi(x) = elu(x) + 1                                                       (7)

A matrix, the dot objective, and no forgetting. The paper divides y_t by phi(q_t)^T sum_s phi(k_s); mixers normalize
their outputs instead, as later papers do. `lr` scales each write; the paper has none, so it is 1 by default.
"""

from __future__ import annotations

from typing import Literal

from memkit.parts.memory import linear
from memkit.parts.objective import dot
from memkit.parts.optimizer import gradient_descent
from memkit.parts.prepare import positive_features
from memkit.parts.retention import none
from memkit.registry import register
from memkit.rule import Rule, as_given


@register("rule", "linear_attention")
def linear_attention(*, features: Literal["elu", "identity"] = "elu") -> Rule:
    """A matrix that sums what it is told.

    features: phi, "elu" as in the paper, or "identity" as in MIRAS Table 1.
    """
    return Rule(
        name="linear_attention",
        memory=linear(),
        objective=dot(),
        optimizer=gradient_descent(lr=1.0),
        retention=none(),
        prepare=positive_features if features == "elu" else as_given,
        mini_batch=1,
    )
