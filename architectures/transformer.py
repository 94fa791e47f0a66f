"""Baselines made of attention: over all tokens, or over a window."""

from __future__ import annotations

from typing import Any

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.mixers.attention import FullAttention, SlidingWindowAttention
from memkit.registry import register, takes_options_of


@register("architecture", "transformer")
@takes_options_of(uniform_model, FullAttention, but=("persistent",))
def transformer(**options: Any) -> LanguageModel:
    """Full causal attention in every layer; its state grows with the text.

    feed_forward: width of each SwiGLU in multiples of dim. checkpoint: compute layers again in the backward pass
    instead of keeping them. Others: as for the mixer `full_attention`.
    """
    return uniform_model(FullAttention, persistent=0, **options)


@register("architecture", "sliding_window")
@takes_options_of(uniform_model, SlidingWindowAttention, but=("persistent",))
def sliding_window(**options: Any) -> LanguageModel:
    """Causal attention over the last `window` tokens, the token itself included, in every layer.

    feed_forward: width of each SwiGLU in multiples of dim. checkpoint: compute layers again in the backward pass
    instead of keeping them. Others: as for the mixer `sliding_window`.
    """
    return uniform_model(SlidingWindowAttention, persistent=0, **options)
