"""The long-term memory module alone (Titans 4.3, LMM): a neural memory in every layer, no attention."""

from __future__ import annotations

from architectures.language_model import LanguageModel
from architectures.titans import titans_model
from memkit.mixers.neural_memory import NeuralMemory, Products
from memkit.mixers.specs import RuleSpec
from memkit.registry import register


@register("architecture", "lmm")
def lmm(
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    persistent: int = 4,
    rule: RuleSpec = "titans",
    conv: int = 4,
    surprise_limit: float | None = None,
    recompute: int | None = None,
    products: Products | None = None,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """Titans without attention: the neural memory is the only thing that mixes tokens.

    rule, conv, surprise_limit, recompute, products: as for the mixer `neural_memory`. persistent: learned tokens in
    front of every layer, 0 for none. feed_forward, checkpoint: as for `LanguageModel`, a SwiGLU's width in multiples
    of dim, and whether blocks are computed again in the backward pass instead of being kept.
    """
    mixers = [
        NeuralMemory(
            dim=dim,
            heads=heads,
            rule=rule,
            conv=conv,
            surprise_limit=surprise_limit,
            recompute=recompute,
            products=products,
        )
        for _ in range(depth)
    ]
    return titans_model(vocab_size, dim, mixers, persistent, feed_forward, checkpoint)
