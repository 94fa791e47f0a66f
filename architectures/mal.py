"""Memory as a Layer (Titans 4.3): the memory first, then a window of attention over its output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.mixers.attention import SlidingWindowAttention
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.neural_memory import NeuralMemory
from memkit.registry import register, takes_options_of


@dataclass(frozen=True, kw_only=True)
class MALState(MixerState):
    """The states of the two layers."""

    memory: Any
    attention: Any


@register("mixer", "mal")
@takes_options_of(NeuralMemory)
class MemoryAsLayer(Mixer):
    """y = M(x), o = SW-Attn(y) (Titans eq. 30, 31), each with its residual connection (4.4).

    Options as for `neural_memory`, and the attention's window. The persistent tokens of eq. 29 pass through both
    layers like the first tokens of the document.
    """

    state_type = MALState

    def __init__(self, *, dim: int, heads: int = 4, window: int = 64, **memory: Any) -> None:
        super().__init__(dim)
        self.memory = NeuralMemory(dim=dim, heads=heads, **memory)
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = SlidingWindowAttention(dim=dim, heads=heads, window=window)

    def init_state(self, batch: int) -> MALState:
        """Return both layers at their start."""
        memory, attention = self.memory.init_state(batch), self.attention.init_state(batch)
        return MALState(segment=memory.segment, memory=memory, attention=attention)

    def mix(self, x: Tensor, state: MALState, mask: Tensor | None, write: bool) -> tuple[Tensor, MALState]:
        """Map one piece of a document; see `Mixer`."""
        read, memory = self.memory(x, state.memory, mask=mask, write=write)
        core, attention = self.attention(self.norm(x + read), state.attention, mask=mask, write=write)
        return read + core, replace(state, memory=memory, attention=attention)


@register("architecture", "mal")
@takes_options_of(uniform_model, MemoryAsLayer)
def mal(**options: Any) -> LanguageModel:
    """Titans, memory as a layer: the memory, then sliding-window attention, in every layer.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer `mal`.
    """
    return uniform_model(MemoryAsLayer, **options)
