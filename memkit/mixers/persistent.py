"""Persistent memory: learned tokens in front of every document, the task's knowledge (Titans 3.3, eq. 19)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memkit.checks import not_negative, positive
from memkit.mixers.base import Mixer
from memkit.mixers.specs import MixerSpec, build_mixer
from memkit.registry import register


class PersistentMemory(Mixer):
    """Any mixer, with `tokens` learned tokens in front of every document.

    `init_state` reads them once, gradients included, by the inner mixer's `begin`: they are written to a memory, and
    stay visible to attention for ever.
    """

    def __init__(self, inner: Mixer, tokens: int) -> None:
        positive("tokens", tokens)
        super().__init__(inner.dim)
        self.inner = inner
        self.tokens = nn.Parameter(torch.randn(tokens, inner.dim))

    def init_state(self, batch: int) -> Any:
        """Return the inner mixer's state after the learned tokens, the same for every row."""
        not_negative("batch", batch)
        return self.inner.begin(self.tokens).map(lambda x: x.expand(batch, *x.shape[1:]))

    def begin(self, tokens: Tensor) -> Any:
        """Put further tokens after its own."""
        return self.inner.begin(torch.cat([self.tokens, tokens]))

    def check_state(self, state: Any, batch: int) -> None:
        """Check the inner mixer's state."""
        self.inner.check_state(state, batch)

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        """Run the inner mixer."""
        return self.inner.mix(x, state, mask, write)

    @torch.no_grad()
    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of the inner state, with those added by the persistent tokens."""
        return self.inner.state_bytes(tokens) + self.init_state(1).bytes - self.inner.init_state(1).bytes


@register("mixer", "persistent")
def persistent(*, dim: int, heads: int = 4, mixer: MixerSpec = "neural_memory", tokens: int = 4) -> PersistentMemory:
    """Put `tokens` learned tokens in front of another mixer, given by name and options."""
    return PersistentMemory(build_mixer(mixer, dim, heads), tokens)
