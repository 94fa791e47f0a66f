"""Mixers and a model with one fault each, and the law that is to find it, beside their honest twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import memkit
from architectures.mac import MemoryAsContext
from broken_engines import Aside
from memkit.mixers.attention import SlidingWindowAttention
from memkit.mixers.base import Mixer
from memkit.mixers.conv import ShortConv
from memkit.mixers.neural_memory import NeuralMemory
from memkit.state import map_tensors
from running_mean import RunningMean, RunningMeanState

DIM = 8


class LooksAhead(RunningMean):
    """A symmetric convolution: each token sees its right neighbor."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x + F.pad(x, (0, 0, 0, 1))[:, 1:], state, mask, write)


class CountsMasked(RunningMean):
    """Masked tokens count as positions."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x, state, None, write)


class MasksByProduct(RunningMean):
    """NaN times 0 is NaN."""

    def forward(self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, **options: Any) -> Any:
        y, state = super().forward(x, state, mask=mask, **options)
        return y if mask is None else y + x * ~mask[..., None] * 0, state


class MissesTheFirstDocument(RunningMean):
    """A document that starts with a call goes unnoticed."""

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> Any:
        unnamed = state and replace(state, segment=torch.full_like(state.segment, -1))
        return super().forward(x, unnamed, **options)


class OneTokenPath(RunningMean):
    """A short cut for decoding that forgets the past."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        y, after = super().mix(x, state, mask, write)
        return (self.out(x), after) if x.shape[1] == 1 else (y, after)


class MeanOverRows(RunningMean):
    """Inputs centred over the batch."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x - x.mean(0, keepdim=True), state, mask, write)


class Hidden(RunningMean):
    """State in a buffer."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.register_buffer("calls", torch.zeros(()))

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        self.calls = self.calls + 1
        y, state = super().mix(x, state, mask, write)
        return y * self.calls, state


class Recognises(RunningMean):
    """State beside the state: it goes to no file."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.aside = Aside()

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        y, after = super().mix(x, replace(state, total=self.aside.get(state.count, state.total)), mask, write)
        self.aside.put(after.count, after.total)
        return y, replace(after, total=torch.zeros_like(after.total))


@dataclass(frozen=True, kw_only=True)
class Past(RunningMeanState):
    """All inputs so far."""

    inputs: Tensor


class Grows(RunningMean):
    """A state that grows with the text and does not say so."""

    def init_state(self, batch: int) -> Past:
        state = super().init_state(batch)
        return Past(total=state.total, count=state.count, segment=state.segment, inputs=state.total[:, None][:, :0])

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        y, after = super().mix(x, state, mask, write)
        return y, replace(after, inputs=torch.cat([state.inputs, x], 1))


class Dead(RunningMean):
    """A parameter that nothing reads."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.unused = nn.Parameter(torch.ones(dim))


class Overflows(RunningMean):
    """An exponential of whatever comes."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x.exp(), state, mask, write)


class ForgetfulConv(ShortConv):
    """A convolution whose last inputs are not carried to the next call."""

    def forward(self, x: Tensor, tail: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, _ = super().forward(x, tail, mask)
        return y, torch.zeros_like(tail)


class ShortSightedConv(ShortConv):
    """A tail made of this call's inputs alone, which is too few when the call is short."""

    def forward(self, x: Tensor, tail: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, _ = super().forward(x, tail, mask)
        return y, F.pad(x, (0, 0, tail.shape[1], 0))[:, x.shape[1] :]


class AlwaysWrites(NeuralMemory):
    """Reading learns too."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x, state, mask, True)


class CentresOverTime(RunningMean):
    """Inputs centred over the sequence, the future included."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x - x.mean(1, keepdim=True) if x.shape[1] else x, state, mask, write)


class IgnoresDocuments(RunningMean):
    """Packed documents are read as one."""

    def forward(self, x: Tensor, state: Any = None, *, segment_ids: Tensor | None = None, **options: Any) -> Any:
        return super().forward(x, state, **options)


class LearnsInParameters(RunningMean):
    """What is learned at test time goes into the module itself."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        y, state = super().mix(x, state, mask, write)
        with torch.no_grad():
            self.out.weight.mul_(1.01)
        return y, state


class NoCache(SlidingWindowAttention):
    """Attention that sees nothing from before its call."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x, self.init_state(x.shape[0]), mask, write)


class SeesAllRecalled(MemoryAsContext):
    """Each token of a segment sees what the memory recalled for later ones."""

    def _attend(self, x: Tensor, slot: Tensor, keys: Tensor, values: Tensor, state: Any) -> Tensor:
        return super()._attend(x, slot.amax(1, keepdim=True).expand_as(slot), keys, values, state)


class WritesWithoutGradient(NeuralMemory):
    """The outer loop does not learn how to write."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        _, after = super().mix(x, state, mask, write)
        y, _ = super().mix(x, map_tensors(torch.detach, state), mask, False)
        return y, map_tensors(torch.detach, after)


class ClipsAtRestart(NeuralMemory):
    """The initial weights of a row that begins a document while others go on are clipped."""

    def reset(self, state: Any, rows: Tensor) -> Any:
        fresh = self.init_state(len(rows))
        if not rows.all():
            weights, anchor = map_tensors(lambda x: x.clamp(-0.1, 0.1), (fresh.memory.weights, fresh.memory.anchor))
            fresh = replace(fresh, memory=replace(fresh.memory, weights=weights, anchor=anchor))
        return state.merge(rows, fresh)


def memory(kind: type[NeuralMemory] = NeuralMemory, conv: type[ShortConv] = ShortConv) -> Mixer:
    """The neural memory, or a broken one."""
    made = kind(dim=DIM, heads=2, rule={"name": "titans", "depth": 1, "mini_batch": 3})
    made.qkv.conv = conv(3 * DIM)
    return made


def context(kind: type[MemoryAsContext] = MemoryAsContext) -> Mixer:
    """Memory as a context, or a broken one."""
    return kind(dim=DIM, heads=2, segment=4, rule={"name": "titans", "depth": 1, "mini_batch": 3})


def model(forgetful: bool) -> nn.Module:
    """A small language model, or one whose `generate` reads nothing but the last token."""
    made: Any = memkit.build("architecture", "mamba2", vocab_size=7, dim=DIM, heads=2, depth=1)
    if forgetful:
        hidden = made._hidden
        made._hidden = lambda ids, state, *rest: hidden(ids, made.init_state(len(ids)), *rest)
    return made


def simple(broken: type[RunningMean]) -> tuple[Callable[[], Mixer], Callable[[], Mixer]]:
    """Factories of the broken mixer and of its honest twin."""
    return partial(broken, dim=DIM), partial(RunningMean, dim=DIM)


MIXERS: dict[str, tuple[str, tuple[Callable[[], Mixer], Callable[[], Mixer]]]] = {
    "symmetric convolution": ("causality", simple(LooksAhead)),
    "convolution's tail not carried": ("split anywhere", (partial(memory, conv=ForgetfulConv), memory)),
    "convolution's tail of one call": ("empty call", (partial(memory, conv=ShortSightedConv), memory)),
    "short cut for one token": ("decode is prefill", simple(OneTokenPath)),
    "mean over the batch": ("rows apart", simple(MeanOverRows)),
    "masked by a product": ("masked token", simple(MasksByProduct)),
    "padding counted": ("left padding", simple(CountsMasked)),
    "document that starts with a call missed": ("documents apart", simple(MissesTheFirstDocument)),
    "reading that writes": ("reading does not write", (partial(memory, AlwaysWrites), memory)),
    "dead parameter": ("every parameter learns", simple(Dead)),
    "state in a buffer": ("state is a value", simple(Hidden)),
    "state that grows": ("state bytes", simple(Grows)),
    "state beside the state": ("save and load", simple(Recognises)),
    "overflow": ("finite", simple(Overflows)),
    "mean over the sequence": ("causality", simple(CentresOverTime)),
    "documents ignored": ("documents apart", simple(IgnoresDocuments)),
    "memory in the parameters": ("state is a value", simple(LearnsInParameters)),
    "attention without a cache": (
        "decode is prefill",
        (partial(NoCache, dim=DIM, heads=2, window=3), partial(SlidingWindowAttention, dim=DIM, heads=2, window=3)),
    ),
    "recalled for later tokens": ("causality", (partial(context, SeesAllRecalled), context)),
    "initial weights clipped by a restart": ("documents apart", (partial(memory, ClipsAtRestart), memory)),
    "writes without gradient": ("every parameter learns", (partial(memory, WritesWithoutGradient), memory)),
}
