"""Causal attention: over a sliding window, or over everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memkit.alignment import align
from memkit.checks import divides, positive
from memkit.mixers.backends import Banded, banded_attention, check_backend
from memkit.mixers.base import Mixer, MixerState, no_segment
from memkit.mixers.conv import ShortConv
from memkit.mixers.rope import Rotary
from memkit.registry import register


@dataclass(frozen=True, kw_only=True)
class AttentionState(MixerState):
    """The cache of attention: the last C valid tokens of each row, in order and ending at the last slot.

    tail `[B, conv - 1, 3 D]`: the convolution's last inputs.
    prefix_keys, prefix_values `[B, H, P, K]`: tokens visible to all, without a position.
    keys, values `[B, H, C, K]`: keys are rotated by their positions. count `[B]`: valid tokens so far; slots
    before the first token are empty. seen: `count`, if it is the same for all rows and known without a look
    at the device, else None.
    """

    tail: Tensor
    prefix_keys: Tensor
    prefix_values: Tensor
    keys: Tensor
    values: Tensor
    count: Tensor
    seen: int | None

    @property
    def slots(self) -> int:
        """C, empty slots included."""
        return self.keys.shape[2]

    @property
    def position(self) -> Tensor:
        """Positions of the cached tokens `[B, C]` in valid tokens, -1 for an empty slot."""
        slot = torch.arange(self.slots, device=self.count.device)
        return (self.count[:, None] - self.slots + slot).clamp(min=-1)

    @property
    def empty(self) -> int | Tensor:
        """The number of empty slots in front: an int if rows are known to agree, else `[B]`."""
        if self.seen is not None:
            return max(0, self.slots - self.seen)
        return (self.slots - self.count).clamp(min=0)

    def merge(self, rows: Tensor, other: Any) -> Self:
        """Take the rows marked in `rows` `[B]` from `other`; the shorter cache gets empty slots.

        Raises `ValueError` for prefixes of different lengths.
        """
        here, there = self.prefix_keys.shape[2], other.prefix_keys.shape[2]
        if here != there:
            raise ValueError(
                f"cannot merge attention states with prefixes of {here} and {there} tokens. "
                "Give init_state the same prefix for both, or use the mixer's reset, which keeps the prefix."
            )
        slots = max(self.slots, other.slots)
        wide = self._widened(slots)
        return super(AttentionState, wide).merge(rows, other._widened(slots))

    def _widened(self, slots: int) -> Self:
        if slots == self.slots:
            return self
        room = (0, 0, slots - self.slots, 0)
        return replace(self, keys=F.pad(self.keys, room), values=F.pad(self.values, room))


class Attention(Mixer):
    """Multi-head causal attention with rotary positions, the base of the registered mixers.

    Token i sees the tokens j <= i of its row with i - j < window (None: all), counted in valid tokens, and
    the prefix of the state. Under a mask the valid tokens of a row close ranks first, so a window is a band of
    slots and costs O(T * window) there too. `write` changes nothing: the cache tracks the stream.
    """

    state_type = AttentionState

    def __init__(self, dim: int, heads: int, window: int | None, backend: str, conv: int) -> None:
        super().__init__(dim)
        divides("heads", heads, "dim", dim)
        if window is not None:
            positive("window", window)
        check_backend(backend)
        self.heads, self.window, self.backend = heads, window, backend
        self.rotary = Rotary(dim // heads)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.conv = ShortConv(3 * dim, conv)

    def init_state(self, batch: int, prefix: Tensor | None = None) -> AttentionState:
        """Return the state before the first token, for `batch` rows.

        prefix `[P, D]` or `[B, P, D]`: tokens visible to all later ones, without a position and outside of the
        window's count. Gradients flow into it. Raises `ValueError` for other shapes.
        """
        weight = self.to_kv.weight
        segment = no_segment(batch, weight.device)

        def empty(slots: int) -> Tensor:
            return weight.new_zeros(batch, self.heads, slots, self.dim // self.heads)

        prefix_keys, prefix_values = (empty(0), empty(0)) if prefix is None else self._prefix(batch, prefix)
        slots = 0 if self.window is None else self.window - 1
        return AttentionState(
            segment=segment,
            tail=self.conv.init_tail(batch, weight),
            prefix_keys=prefix_keys,
            prefix_values=prefix_values,
            keys=empty(slots),
            values=empty(slots),
            count=torch.zeros(batch, dtype=torch.long, device=weight.device),
            seen=0,
        )

    def begin(self, tokens: Tensor) -> AttentionState:
        """Take persistent tokens `[P, D]` as a prefix: every later token sees them (Titans Fig. 3b)."""
        return self.init_state(1, prefix=tokens)

    def _prefix(self, batch: int, prefix: Tensor) -> tuple[Tensor, ...]:
        """Return keys and values `[B, H, P, K]` of the prefix."""
        rows = prefix.shape[:-2]
        if prefix.dim() < 2 or rows not in ((), (batch,)) or prefix.shape[-1] != self.dim:
            raise ValueError(
                f"prefix must be [P, D] or [B, P, D] with D = {self.dim} and B = {batch}; got {tuple(prefix.shape)}."
            )
        prefix = prefix if rows else prefix[None]
        return tuple(x.expand(batch, -1, -1, -1) for x in self._heads(self.to_kv(prefix), 2))

    def check_state(self, state: Any, batch: int) -> None:
        """Refuse caches of other heads, widths and windows too."""
        super().check_state(state, batch)
        slots = state.slots if self.window is None else self.window - 1
        wanted = (self.heads, slots, self.dim // self.heads)
        if state.keys.shape[1:] != wanted:
            raise ValueError(
                f"the state's cache is {tuple(state.keys.shape[1:])} a row (heads, tokens, width), and this layer's is "
                f"{wanted}. Use a state that this layer returned, or its init_state({batch})."
            )

    def reset(self, state: AttentionState, rows: Tensor) -> AttentionState:
        """Start the rows marked True `[B]` afresh; the prefix stays."""
        fresh = self.init_state(rows.shape[0])
        kept = replace(fresh, prefix_keys=state.prefix_keys, prefix_values=state.prefix_values)
        return state.merge(rows, kept)

    def state_bytes(self, tokens: int) -> int:
        """Return the bytes of one row's state after `tokens` tokens; with a window, the same for any number."""
        grown = tokens if self.window is None else 0
        return super().state_bytes(tokens) + 2 * grown * self.dim * self.to_kv.weight.element_size()

    def mix(self, x: Tensor, state: AttentionState, mask: Tensor | None, write: bool) -> tuple[Tensor, AttentionState]:
        """Map one piece of a document, x `[B, T, D]` -> (y, state)."""
        tokens = x.shape[1]
        if tokens == 0:
            return x, state
        qkv, tail = self.conv(torch.cat([self.to_q(x), self.to_kv(x)], -1), state.tail, mask)
        state = replace(state, tail=tail)
        if mask is None:
            keys, values, y = self._attend(qkv, state)
        else:
            ranks = align(mask, torch.zeros_like(state.count), tokens)
            keys, values, y = self._attend(ranks.to_slots(qkv), state)
            y = ranks.to_tokens(y)
        return y, self._advance(state, keys, values, tokens, mask)

    def _attend(self, qkv: Tensor, state: AttentionState) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from qkv `[B, T, 3 D]`: return keys and values `[B, H, C + T, K]` and the output `[B, T, D]`."""
        q, k, v = self._heads(qkv, 3)
        position = state.count[:, None] + torch.arange(qkv.shape[1], device=qkv.device)
        q, k = self.rotary(q, position), self.rotary(k, position)
        # Under autocast the state keeps its own dtype and attention takes the queries'.
        keys = torch.cat([state.keys.to(k.dtype), k], 2)
        values = torch.cat([state.values.to(v.dtype), v], 2)
        prefix_keys, prefix_values = state.prefix_keys.to(k.dtype), state.prefix_values.to(v.dtype)
        call = Banded(q, keys, values, prefix_keys, prefix_values, self.window, state.empty)
        y = banded_attention(call, self.backend)
        return keys, values, self.to_out(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Split `[B, T, parts * D]` into `parts` tensors `[B, H, T, K]`."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _advance(
        self, state: AttentionState, keys: Tensor, values: Tensor, tokens: int, mask: Tensor | None
    ) -> AttentionState:
        """Keep the last slots of `[cache | call]`, with all valid tokens side by side."""
        slots = state.slots + tokens if self.window is None else state.slots
        if mask is None:
            count, seen = state.count + tokens, None if state.seen is None else state.seen + tokens
            keys, values = (_last(x, slots) for x in (keys, values))
        else:
            valid = mask.sum(1)
            count, seen = state.count + valid, None
            stop = state.slots + valid
            index = stop[:, None] - slots + torch.arange(slots, device=keys.device)
            keys, values = (_gather(x, index) for x in (keys, values))
        keys, values = keys.to(state.keys.dtype), values.to(state.values.dtype)
        return replace(state, keys=keys, values=values, count=count, seen=seen)


def _last(x: Tensor, slots: int) -> Tensor:
    start = x.shape[2] - slots
    return x if start == 0 else x[:, :, start:].clone()  # a view would keep all of a long call's keys alive


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Return slots `[B, N]` of x `[B, H, S, K]`, zeros for negative ones, which are empty."""
    index = index[:, None, :, None]
    return torch.where(index >= 0, x.take_along_dim(index.clamp(min=0), 2), torch.zeros_like(x[:, :, :1]))


@register("mixer", "sliding_window")
class SlidingWindowAttention(Attention):
    """Attention over the last `window` valid tokens, the token itself included; the state is O(window).

    conv: width of a causal convolution over queries, keys and values, 0 for none.
    Raises `ValueError` unless heads divides dim into even widths and window >= 1, and for a backend that is
    unknown or not available (`"auto"`, `"torch"`, `"flex"`, `"flash_attn"`, `"xformers"`).
    """

    def __init__(self, dim: int, heads: int = 4, window: int = 64, backend: str = "auto", conv: int = 0) -> None:
        super().__init__(dim, heads, window, backend, conv)


@register("mixer", "full_attention")
class FullAttention(Attention):
    """Attention over all tokens so far; the state grows by T slots with every call of T tokens.

    conv: width of a causal convolution over queries, keys and values, 0 for none.
    Raises `ValueError` as `SlidingWindowAttention`.
    """

    def __init__(self, dim: int, heads: int = 4, backend: str = "auto", conv: int = 0) -> None:
        super().__init__(dim, heads, None, backend, conv)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, backend: str = "auto") -> Tensor:
    """Attend with an arbitrary mask `visible`, such as no band can express.

    q `[B, H, T, K]`, k `[B, H, S, K]`, v `[B, H, S, V]`, visible bool `[B or 1, 1, T, S]` -> `[B, H, T, V]`; 0, and no
    gradient, for a query with nothing to see. Invisible keys and values must be finite. Runs by torch's
    scaled_dot_product_attention: the other kernels take no arbitrary mask.

    Raises `ValueError` for a backend other than `"auto"` and `"torch"`.
    """
    if backend not in ("auto", "torch"):
        raise ValueError(f"backend {backend!r} cannot attend with an arbitrary mask. Use backend='auto' or 'torch'.")
    anything = visible.any(-1, keepdim=True)
    # Kernels differ on rows with nothing to see, so those rows see everything and are zeroed after.
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | ~anything)
    return torch.where(anything, y, torch.zeros((), dtype=y.dtype, device=y.device))
