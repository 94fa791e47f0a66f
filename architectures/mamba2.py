"""The state-space baseline: Mamba-2 in every layer."""

from __future__ import annotations

from typing import Any

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.mixers.mamba2 import Mamba2
from memkit.registry import register, takes_options_of


@register("architecture", "mamba2")
@takes_options_of(uniform_model, Mamba2, but=("persistent",))
def mamba2(**options: Any) -> LanguageModel:
    """A Mamba-2 layer in every block.

    feed_forward: width of each SwiGLU in multiples of dim. checkpoint: compute layers again in the backward pass
    instead of keeping them. Others: as for the mixer `mamba2`.
    """
    return uniform_model(Mamba2, persistent=0, **options)
