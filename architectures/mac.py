"""Memory as a Context (Titans 4.1, eq. 21-25): attention over [persistent | recalled from the memory | segment].

Per segment: read the memory of the segment's start, attend, write the attention's output, read again, gate. The
equations leave causality open; here every token is causal: h_j comes from token j's query, so token i sees h_j for
j <= i only, and its second read sees the memory as of token i, not as of the segment's end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from architectures.language_model import LanguageModel
from architectures.mag import Gating
from architectures.uniform import uniform_model
from memkit.checks import positive
from memkit.engine import MemoryState
from memkit.layout import Block, lay_out
from memkit.mixers.attention import attend
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.neural_memory import NeuralMemory, NeuralMemoryState, Projection
from memkit.mixers.rope import Rotary
from memkit.registry import register, takes_options_of


@dataclass(frozen=True, kw_only=True)
class MACState(MixerState):
    """State of a MAC layer.

    memory: the memory now; start: the memory at the segment's start. tail: the recalling query's convolution.
    prefix_keys, prefix_values `[B, H, P, K]`: the persistent tokens. keys, values `[B, H, 2, C, K]`: of the
    running segment, recalled (0) and own (1) at each of its C slots; keys are rotated by their slots.
    offset `[B]`: slots in use; phase: the same as an integer if all rows are known to agree, else None.
    """

    memory: NeuralMemoryState
    start: MemoryState
    tail: Tensor
    prefix_keys: Tensor
    prefix_values: Tensor
    keys: Tensor
    values: Tensor
    offset: Tensor
    phase: int | None


@register("mixer", "mac")
@takes_options_of(NeuralMemory)
class MemoryAsContext(Mixer):
    """Attention within segments of `segment` tokens, with the long past recalled from the memory.

    Options as for `neural_memory`, and the segment. The memory is called once per segment, so `recompute` groups the
    tokens of a segment at most, and attention is kept. Raises `ValueError` for sizes that do not fit.
    """

    state_type = MACState

    def __init__(self, *, dim: int, heads: int = 4, segment: int = 64, **memory: Any) -> None:
        positive("segment", segment)
        super().__init__(dim)
        self.heads, self.segment = heads, segment
        self.memory = NeuralMemory(dim=dim, heads=heads, **memory)
        self.recalling = Projection(dim, dim, self.memory.qkv.conv.width)
        self.rotary = Rotary(dim // heads)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.gating = Gating(dim)
        with torch.no_grad():  # the memory's queries start equal to its own query projection
            self.recalling.linear.weight.copy_(self.memory.qkv.linear.weight[:dim])

    def init_state(self, batch: int) -> MACState:
        """Return the memory at its start, with an empty segment."""
        memory = self.memory.init_state(batch)
        weight, width = self.to_kv.weight, self.dim // self.heads
        empty = weight.new_zeros(batch, self.heads, 2, self.segment, width)
        return MACState(
            segment=memory.segment,
            memory=memory,
            start=memory.memory,
            tail=self.recalling.init_tail(batch),
            prefix_keys=empty[:, :, 0, :0],
            prefix_values=empty[:, :, 0, :0],
            keys=empty,
            values=empty,
            offset=torch.zeros_like(memory.segment),
            phase=0,
        )

    def begin(self, tokens: Tensor) -> MACState:
        """Show persistent tokens to every token, without a position (eq. 22); the memory does not read them."""
        keys, values = self._keys_values(tokens[None])
        return replace(self.init_state(1), prefix_keys=keys, prefix_values=values)

    def check_state(self, state: Any, batch: int) -> None:
        """Refuse a state of other segments too; the memory checks its own."""
        super().check_state(state, batch)
        if state.keys.shape[3] != self.segment:
            raise ValueError(
                f"the state is of segments of {state.keys.shape[3]} tokens, and this layer's have {self.segment}. "
                f"Use a state that this layer returned, or its init_state({batch})."
            )

    def mix(self, x: Tensor, state: MACState, mask: Tensor | None, write: bool) -> tuple[Tensor, MACState]:
        """Map one piece of a document; see `Mixer`."""
        tokens = x.shape[1]
        if tokens == 0:
            return x, state
        queries, tail = self.recalling(x, state.tail, mask)
        state = replace(state, tail=tail)
        layout = lay_out(self.segment, mask, state.offset, state.phase, tokens, self.segment, completes=False)
        # Split all at once: the backward pass of every single slice would write a whole [B, T, D].
        lengths = [block.stop - block.start for block in layout.blocks]
        parts = zip(layout.to_slots(x).split(lengths, 1), layout.to_slots(queries).split(lengths, 1), strict=True)
        outputs = []
        for block, (x_part, q_part) in zip(layout.blocks, parts, strict=True):
            valid = None if layout.valid is None else layout.valid[:, block.start : block.stop]
            y, state = self._within_segment(x_part, q_part, block, valid, state, write)
            outputs.append(y)
        counted = tokens if mask is None else mask.sum(1)
        known = mask is None and state.phase is not None
        phase = (state.phase + tokens) % self.segment if known else None  # type: ignore[operator]
        state = replace(state, offset=(state.offset + counted) % self.segment, phase=phase)
        return layout.to_tokens(torch.cat(outputs, 1)), state

    def _within_segment(
        self, x: Tensor, queries: Tensor, block: Block, valid: Tensor | None, state: MACState, write: bool
    ) -> tuple[Tensor, MACState]:
        """Map tokens x `[B, L, D]` of one segment, from slot `block.slot` on."""
        start = state.start
        if isinstance(block.begins, Tensor):
            start = start.merge(block.begins, state.memory.memory)
        elif block.begins:
            start = state.memory.memory
        recalled = self.memory.recall(x, queries, start)  # (21)
        place = torch.arange(x.shape[1], device=x.device)
        slot = place + (block.slot[:, None] if isinstance(block.slot, Tensor) else block.slot)
        slot = slot.expand(x.shape[0], -1)
        keys, values = self._enter(recalled, x, slot, valid, state)  # (22)
        y = self._attend(x, slot, keys, values, state)  # (23)
        # The memory reads y with its residual connection (4.4); the gate's output gets x from the block around it.
        read, memory = self.memory(self.norm(x + y), state.memory, mask=valid, write=write)  # (24), (25)
        state = replace(state, memory=memory, start=start, keys=keys, values=values)
        return self.gating(y, read), state

    def _enter(
        self, recalled: Tensor, x: Tensor, slot: Tensor, valid: Tensor | None, state: MACState
    ) -> tuple[Tensor, Tensor]:
        """Put the keys and values of h and x at their slots `[B, L]` of the running segment."""
        pairs = [self._keys_values(part) for part in (recalled, x)]
        new_keys = torch.stack([self.rotary(keys, slot) for keys, _ in pairs], 2)
        new_values = torch.stack([values for _, values in pairs], 2)
        index = slot[:, None, None, :, None].expand_as(new_keys)
        found = []
        for held, new in ((state.keys, new_keys), (state.values, new_values)):
            new = new.to(held.dtype)
            if valid is not None:
                new = torch.where(valid[:, None, None, :, None], new, held.gather(3, index))
            found.append(held.scatter(3, index, new))
        return found[0], found[1]

    def _attend(self, x: Tensor, slot: Tensor, keys: Tensor, values: Tensor, state: MACState) -> Tensor:
        """Attend: token i sees all persistent tokens, and h_j and x_j at slots j <= i."""
        q = self.rotary(self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), slot)
        seen = torch.arange(self.segment, device=x.device) <= slot[..., None]
        always = seen.new_ones(*seen.shape[:2], state.prefix_keys.shape[2])
        visible = torch.cat([always, seen, seen], -1)[:, None]
        k = torch.cat([state.prefix_keys, keys.flatten(2, 3)], 2).to(q.dtype)
        v = torch.cat([state.prefix_values, values.flatten(2, 3)], 2).to(q.dtype)
        return self.to_out(attend(q, k, v, visible).transpose(1, 2).flatten(2))

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values `[B, H, T, K]`."""
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v


@register("architecture", "mac")
@takes_options_of(uniform_model, MemoryAsContext)
def mac(**options: Any) -> LanguageModel:
    """Titans, memory as a context: attention over the segment and the memory's recall of it, in every layer.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer `mac`.
    """
    return uniform_model(MemoryAsContext, **options)
