"""What the Titans architectures share: persistent tokens around each layer's mixer."""

from __future__ import annotations

from collections.abc import Sequence

from architectures.language_model import LanguageModel
from memkit.checks import not_negative
from memkit.mixers.base import Mixer
from memkit.mixers.persistent import PersistentMemory


def titans_model(
    vocab_size: int,
    dim: int,
    mixers: Sequence[Mixer],
    persistent: int,
    feed_forward: float,
    checkpoint: bool,
) -> LanguageModel:
    """A language model of Titans layers, each with `persistent` learned tokens in front (0: none)."""
    not_negative("persistent", persistent)
    layers = [PersistentMemory(mixer, persistent) if persistent else mixer for mixer in mixers]
    return LanguageModel(vocab_size, dim, layers, feed_forward=feed_forward, checkpoint=checkpoint)
