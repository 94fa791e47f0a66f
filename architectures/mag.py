"""Memory as a Gate (Titans 4.2): the memory and a window of attention side by side, one gating the other."""

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


class Gating(nn.Module):
    """y (x) m, "any non-linear gating": y and m, normalized with learned vector weights, gate each other.

    The paper leaves the form open (4.2). Here it is y sigmoid(m) + m sigmoid(y), so that the memory's output reaches
    the residual stream itself, not only as a factor of the attention's. The weights start small enough for the tokens
    to stay audible beside it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_core = nn.RMSNorm(dim, eps=1e-6)
        self.norm_memory = nn.RMSNorm(dim, eps=1e-6)
        for norm in (self.norm_core, self.norm_memory):
            nn.init.constant_(norm.weight, 0.3)

    def forward(self, core: Tensor, memory: Tensor) -> Tensor:
        """Join the outputs of the core and of the memory, both `[B, T, D]`."""
        y, m = self.norm_core(core), self.norm_memory(memory)
        return y * m.sigmoid() + m * y.sigmoid()


@dataclass(frozen=True, kw_only=True)
class MAGState(MixerState):
    """The states of the two branches."""

    attention: Any
    memory: Any


@register("mixer", "mag")
@takes_options_of(NeuralMemory)
class MemoryAsGate(Mixer):
    """o = SW-Attn(x) (x) M(x) (Titans eq. 27, 28). Options as for `neural_memory`, and the attention's window."""

    state_type = MAGState

    def __init__(self, *, dim: int, heads: int = 4, window: int = 64, **memory: Any) -> None:
        super().__init__(dim)
        self.attention = SlidingWindowAttention(dim=dim, heads=heads, window=window)
        self.memory = NeuralMemory(dim=dim, heads=heads, **memory)
        self.gating = Gating(dim)

    def init_state(self, batch: int) -> MAGState:
        """Return both branches at their start."""
        attention, memory = self.attention.init_state(batch), self.memory.init_state(batch)
        return MAGState(segment=memory.segment, attention=attention, memory=memory)

    def begin(self, tokens: Tensor) -> MAGState:
        """Keep persistent tokens visible to the attention and write them to the memory (eq. 26)."""
        attention, memory = self.attention.begin(tokens), self.memory.begin(tokens)
        return MAGState(segment=memory.segment, attention=attention, memory=memory)

    def mix(self, x: Tensor, state: MAGState, mask: Tensor | None, write: bool) -> tuple[Tensor, MAGState]:
        """Map one piece of a document; see `Mixer`."""
        core, attention = self.attention(x, state.attention, mask=mask, write=write)
        memory_out, memory = self.memory(x, state.memory, mask=mask, write=write)
        return self.gating(core, memory_out), replace(state, attention=attention, memory=memory)


@register("architecture", "mag")
@takes_options_of(uniform_model, MemoryAsGate)
def mag(**options: Any) -> LanguageModel:
    """Titans, memory as a gate: sliding-window attention gated by the memory, in every layer.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer `mag`.
    """
    return uniform_model(MemoryAsGate, **options)
