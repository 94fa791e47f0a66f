"""A language model of any mixers in any order, the general case of every other architecture."""

from __future__ import annotations

from architectures.language_model import LanguageModel
from memkit.checks import positive
from memkit.mixers.base import Mixer
from memkit.mixers.specs import mixer_config
from memkit.registry import Spec, register


@register("architecture", "hybrid")
def hybrid(
    *,
    vocab_size: int,
    pattern: list[Spec],
    dim: int = 128,
    depth: int | None = None,
    heads: int = 4,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """Build a model with mixer `pattern[i % len(pattern)]` in layer i.

        build("architecture", "hybrid", vocab_size=256, depth=6,
              pattern=["mamba2", "mamba2", {"name": "sliding_window", "window": 128}])

    Each entry is a mixer's name or a mapping of its name and options. Every mixer gets `dim`, and `heads`
    if it takes it and its entry does not set it. depth is one turn of the pattern unless given;
    feed_forward and checkpoint are those of `LanguageModel`. Raises `ValueError` for sizes below 1, an
    empty pattern, and any error of a mixer; everything is checked before anything is built.
    """
    positive("vocab_size", vocab_size)
    positive("dim", dim)
    positive("heads", heads)
    if not pattern:
        raise ValueError("a hybrid needs a pattern of at least one mixer, such as pattern=['full_attention'].")
    depth = len(pattern) if depth is None else depth
    positive("depth", depth)
    configs = [mixer_config(pattern[layer % len(pattern)], dim, heads) for layer in range(depth)]
    for config in configs[: len(pattern)]:
        config.check()
    mixers: list[Mixer] = [config.build() for config in configs]
    return LanguageModel(vocab_size, dim, mixers, feed_forward=feed_forward, checkpoint=checkpoint)
