"""Memory as a Layer (Titans 4.3): the memory first, a window of attention over what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from architectures.language_model import LanguageModel
from architectures.titans import titans_model
from memkit.mixers.attention import SlidingWindowAttention
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.neural_memory import NeuralMemory, Products
from memkit.mixers.specs import RuleSpec
from memkit.registry import register


@dataclass(frozen=True, kw_only=True)
class MALState(MixerState):
    """The states of the two layers."""

    memory: Any
    attention: Any


@register("mixer", "mal")
class MemoryAsLayer(Mixer):
    """y = M(x), o = SW-Attn(y) (Titans eq. 30, 31), each with its residual connection (4.4).

    Options as for `neural_memory`, and the attention's window. The persistent tokens of eq. 29 pass
    through both layers like the first tokens of the document.
    """

    state_type = MALState

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 4,
        window: int = 64,
        rule: RuleSpec = "titans",
        conv: int = 4,
        surprise_limit: float | None = None,
        recompute: int | None = None,
        products: Products | None = None,
    ) -> None:
        super().__init__(dim)
        self.memory = NeuralMemory(
            dim=dim,
            heads=heads,
            rule=rule,
            conv=conv,
            surprise_limit=surprise_limit,
            recompute=recompute,
            products=products,
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = SlidingWindowAttention(dim=dim, heads=heads, window=window)

    def init_state(self, batch: int) -> MALState:
        """Both layers at their start."""
        memory, attention = self.memory.init_state(batch), self.attention.init_state(batch)
        return MALState(segment=memory.segment, memory=memory, attention=attention)

    def mix(self, x: Tensor, state: MALState, mask: Tensor | None, write: bool) -> tuple[Tensor, MALState]:
        """One document piece; see `Mixer`."""
        read, memory = self.memory(x, state.memory, mask=mask, write=write)
        core, attention = self.attention(self.norm(x + read), state.attention, mask=mask, write=write)
        return read + core, replace(state, memory=memory, attention=attention)


@register("architecture", "mal")
def mal(
    *,
    vocab_size: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    window: int = 64,
    persistent: int = 4,
    rule: RuleSpec = "titans",
    conv: int = 4,
    surprise_limit: float | None = None,
    recompute: int | None = None,
    products: Products | None = None,
    feed_forward: float = 8 / 3,
    checkpoint: bool = False,
) -> LanguageModel:
    """Titans, memory as a layer: the memory, then sliding-window attention, in every layer.

    window: tokens that attention sees. rule, conv, surprise_limit, recompute, products: as for the mixer
    `neural_memory`. persistent: learned tokens in front of every layer, 0 for none. feed_forward, checkpoint: as for
    `LanguageModel`, a SwiGLU's width in multiples of dim, and whether blocks are computed again in the backward pass
    instead of being kept.
    """
    mixers = [
        MemoryAsLayer(
            dim=dim,
            heads=heads,
            window=window,
            rule=rule,
            conv=conv,
            surprise_limit=surprise_limit,
            recompute=recompute,
            products=products,
        )
        for _ in range(depth)
    ]
    return titans_model(vocab_size, dim, mixers, persistent, feed_forward, checkpoint)
