"""The long-term memory module alone (Titans 4.3, LMM): a neural memory in every layer, no attention."""

from __future__ import annotations

from typing import Any

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.mixers.neural_memory import NeuralMemory
from memkit.registry import register, takes_options_of


@register("architecture", "lmm")
@takes_options_of(uniform_model, NeuralMemory)
def lmm(**options: Any) -> LanguageModel:
    """Titans without attention: only the neural memory mixes tokens.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer
    `neural_memory`.
    """
    return uniform_model(NeuralMemory, **options)
