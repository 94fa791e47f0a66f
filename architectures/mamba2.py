"""The state-space baseline: Mamba-2 in every layer."""

from __future__ import annotations

from architectures.hybrid import hybrid
from architectures.language_model import LanguageModel
from memkit.registry import register


@register("architecture", "mamba2")
def mamba2(
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    state: int = 64,
    expand: int = 2,
    conv: int = 4,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """A Mamba-2 layer in every block.

    heads, state, expand, conv: as for the mixer `mamba2`. feed_forward, checkpoint: as for `LanguageModel`, a
    SwiGLU's width in multiples of dim, and whether blocks are computed again in the backward pass instead of being
    kept.
    """
    return hybrid(
        vocab_size=vocab_size,
        pattern=[{"name": "mamba2", "state": state, "expand": expand, "conv": conv}],
        dim=dim,
        depth=depth,
        heads=heads,
        feed_forward=feed_forward,
        checkpoint=checkpoint,
    )
