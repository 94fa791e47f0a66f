"""The baselines made of attention: it sees everything, or a window."""

from __future__ import annotations

from architectures.hybrid import hybrid
from architectures.language_model import LanguageModel
from memkit.registry import register


@register("architecture", "transformer")
def transformer(
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    conv: int = 0,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """Full causal attention in every layer; its state grows with the text.

    conv: as for the mixer `full_attention`. feed_forward, checkpoint: as for `LanguageModel`, a SwiGLU's width in
    multiples of dim, and whether blocks are computed again in the backward pass instead of being kept.
    """
    return hybrid(
        vocab_size=vocab_size,
        pattern=[{"name": "full_attention", "conv": conv}],
        dim=dim,
        depth=depth,
        heads=heads,
        feed_forward=feed_forward,
        checkpoint=checkpoint,
    )


@register("architecture", "sliding_window")
def sliding_window(
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    window: int = 64,
    conv: int = 0,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """Causal attention over the last `window` tokens, the token itself included, in every layer.

    conv: as for the mixer `sliding_window`. feed_forward, checkpoint: as for `LanguageModel`, a SwiGLU's width in
    multiples of dim, and whether blocks are computed again in the backward pass instead of being kept.
    """
    return hybrid(
        vocab_size=vocab_size,
        pattern=[{"name": "sliding_window", "window": window, "conv": conv}],
        dim=dim,
        depth=depth,
        heads=heads,
        feed_forward=feed_forward,
        checkpoint=checkpoint,
    )
