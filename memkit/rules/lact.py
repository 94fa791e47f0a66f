"""LaCT, large-chunk test-time training (Zhang et al., arXiv 2505.23884, eq. 4, 6-9).

    g = grad sum_{i in chunk} eta_i L_i(W),    L_i = -<f_W(k_i), v_i>     (4, 7)
    S <- beta S + g,    W <- L2norm(W - NewtonSchulz_5(S))                (9; 8 without Muon)
    f_W(x) = (silu(x W_1) * x W_3) W_2                                    (6)

L2norm scales every output's column to the length it began with. All tokens of a chunk read the weights from before
it, as language models need it ("apply, then update"). Symbols: eta = `weight`, which is per token; beta = `momentum`
of the chunk's last token; `lr` scales the step and is 1 in the paper. Its layer adds attention over a window as long
as a chunk.
"""

from __future__ import annotations

import math
from typing import Literal

from memkit.parts.gated_mlp import gated_mlp
from memkit.parts.objective import dot
from memkit.parts.retention import normalised
from memkit.registry import build, register
from memkit.rule import Gate, Rule


@register("rule", "lact")
def lact(
    *,
    update_every: int = 2048,
    expansion: int = 1,
    optimizer: Literal["muon", "heavy_ball", "gradient_descent"] = "muon",
) -> Rule:
    """A SwiGLU memory written once every `update_every` tokens.

    optimizer: "heavy_ball" and "gradient_descent" are the paper's ablations.
    """
    return Rule(
        name="lact",
        memory=gated_mlp(expansion=expansion),
        objective=dot(),
        optimizer=build("optimizer", optimizer, lr=1.0),
        retention=normalised(),
        mini_batch=1,
        update_every=update_every,
        weight=Gate("weight", 0.0, math.inf),
        read="before",
    )
