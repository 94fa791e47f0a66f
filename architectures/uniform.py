"""A language model with the same mixer in every layer, as most architectures are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from architectures.language_model import LanguageModel
from memkit.checks import not_negative, positive
from memkit.mixers.base import Mixer
from memkit.mixers.persistent import PersistentMemory


def uniform_model(
    mixer: Callable[..., Mixer],
    /,
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    persistent: int = 4,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
    **options: Any,
) -> LanguageModel:
    """Build `depth` layers of `mixer(dim=dim, heads=heads, **options)`.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward, checkpoint: as for `LanguageModel`.
    """
    positive("vocab_size", vocab_size)
    positive("depth", depth)
    not_negative("persistent", persistent)
    mixers = [mixer(dim=dim, heads=heads, **options) for _ in range(depth)]
    layers = [PersistentMemory(each, persistent) if persistent else each for each in mixers]
    return LanguageModel(vocab_size, dim, layers, feed_forward=feed_forward, checkpoint=checkpoint)
