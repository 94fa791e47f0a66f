"""Problems for the laws of mixers and language models: small integers and one seed, as for rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from memkit.testing.replay import Replayable
from memkit.testing.strategies import MaskKind, cuts, draw_mask, draw_segments, seeds

UNREAD = (float("nan"), float("inf"), -float("inf"), 1e30)
"""What stands under a mask: nothing may depend on it."""
UNREAD_IDS = (-1, 10**9)
LONG = 300
"""Tokens of an adversarial stream."""
MOVED = 0.3
"""How far, about, the vectors of an enlarged component are from where they begin."""


class Sequence(Protocol):
    """The contract that mixers and language models share; see `memkit.mixers.base.Mixer`."""

    def __call__(
        self,
        inputs: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        write: bool = True,
    ) -> tuple[Tensor, Any]:
        """Run some tokens."""
        ...

    def init_state(self, batch: int) -> Any:
        """The state before the first token."""
        ...

    def reset(self, state: Any, rows: Tensor) -> Any:
        """Start some rows afresh."""
        ...

    def state_bytes(self, tokens: int) -> int:
        """Bytes of one row's state after `tokens` tokens."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class SequenceProblem(Replayable):
    """A small situation for a sequence component: sizes, what came before, and a seed.

    The defaults are the smallest one. prefix: tokens already read; ragged: rows have read different numbers of
    them. cuts: two places in 0..tokens. gain: by how much `enlarged` multiplies matrices. write: whether the component
    learns. filled: whether what begins as a matrix of zeros, the memory of one matrix, begins as random numbers.
    """

    batch: int = 1
    tokens: int = 2
    prefix: int = 0
    ragged: bool = False
    cuts: tuple[int, int] = (0, 0)
    gain: int = 1
    write: bool = True
    filled: bool = False
    seed: int = 0

    def generator(self, stream: int) -> torch.Generator:
        """Random numbers of this problem; every use has a stream of its own."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def build(self, factory: Callable[[], Any]) -> Any:
        """A component in float64, initialised from the seed, without matrices of zeros if the problem is `filled`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            component = factory().double()
        if self.filled:
            _fill(component, self.generator(10))
        return component

    def enlarged(self, component: Any) -> Any:
        """A copy whose matrices are `gain` times as large, if that is not 1: what is small or 0 at first is not hidden.

        What is 0, as a memory of one matrix is before it learns, becomes as large as other matrices are; vectors move
        a little. They are biases, gains and logarithms, of which a multiple can mean nothing: three times a step
        size's is its cube, with which a memory writes next to nothing and reads the noise of that, normalised.
        """
        larger, generator = copy.deepcopy(component), self.generator(9)
        if self.gain != 1:
            _fill(larger, generator)
        for parameter in larger.parameters() if self.gain != 1 else ():
            with torch.no_grad():
                if parameter.dim() < 2:
                    parameter.add_(MOVED * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
                else:
                    parameter.mul_(self.gain)
        return larger

    def inputs(self, component: Any, length: int | None = None, stream: int = 1) -> Tensor:
        """Random inputs of `batch` rows for this kind of component."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the inputs are.")

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """The same inputs with what must not be looked at where `mask` `[B, T]` is false."""
        raise NotImplementedError(f"{type(self).__name__} does not say what must not be looked at.")

    def adversarial(self, component: Any) -> Tensor:
        """A batch of long streams, one kind a row."""
        raise NotImplementedError(f"{type(self).__name__} has no adversarial streams.")

    @torch.no_grad()
    def state_after_prefix(self, component: Any) -> Any:
        """The state in use: after the prefix, without history."""
        mask = self.mask(length=self.prefix, stream=4) if self.ragged else None
        return component(self.inputs(component, self.prefix, stream=3), mask=mask)[1]

    def state_for(self, component: Any) -> Any:
        """The state after the prefix, or a fresh one, through which gradients flow to what is learned."""
        return self.state_after_prefix(component) if self.prefix else component.init_state(self.batch)

    def mask(self, kind: MaskKind = "anywhere", length: int | None = None, stream: int = 5) -> Tensor:
        """`[B, T]`: holes anywhere, or padding on the left."""
        return draw_mask(kind, self.batch, self.tokens if length is None else length, self.generator(stream))

    def segment_ids(self) -> Tensor:
        """`[B, T]`: documents of random lengths."""
        return draw_segments(self.batch, self.tokens, self.generator(6))


@dataclass(frozen=True, kw_only=True, repr=False)
class MixerProblem(SequenceProblem):
    """A problem whose inputs are x `[B, T, D]`."""

    def inputs(self, component: Any, length: int | None = None, stream: int = 1) -> Tensor:
        """Normal x `[B, T, D]`, float64."""
        shape = (self.batch, self.tokens if length is None else length, component.dim)
        return torch.randn(shape, generator=self.generator(stream), dtype=torch.float64)

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """NaN, infinities and huge numbers under the mask."""
        junk = torch.tensor(UNREAD, dtype=inputs.dtype).repeat(inputs.numel() // len(UNREAD) + 1)
        return torch.where(mask[..., None], inputs, junk[: inputs.numel()].view_as(inputs))

    def adversarial(self, component: Any) -> Tensor:
        """Rows: one token for ever, two in turn, random, and random a hundred times as large; float32."""
        x = replace(self, batch=4).inputs(component, LONG).float()
        x[0], x[1, 0::2], x[1, 1::2] = x[0, 0], x[1, 0].clone(), x[1, 1].clone()
        x[3] *= 100
        return x


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelProblem(SequenceProblem):
    """A problem whose inputs are ids `[B, T]`."""

    def inputs(self, component: Any, length: int | None = None, stream: int = 1) -> Tensor:
        """Uniform ids `[B, T]`."""
        shape = (self.batch, self.tokens if length is None else length)
        return torch.randint(component.vocab_size, shape, generator=self.generator(stream))

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Ids under the mask that are not in any vocabulary."""
        junk = torch.tensor(UNREAD_IDS).repeat(inputs.numel() // len(UNREAD_IDS) + 1)
        return torch.where(mask, inputs, junk[: inputs.numel()].view_as(inputs))

    def adversarial(self, component: Any) -> Tensor:
        """Rows: one id for ever, two in turn, random."""
        ids = replace(self, batch=3).inputs(component, LONG)
        ids[0], ids[1, 0::2], ids[1, 1::2] = ids[0, 0], ids[1, 0].clone(), ids[1, 1].clone()
        return ids


def mixer_problems() -> st.SearchStrategy[MixerProblem]:
    """Problems for a mixer."""
    return _problems(MixerProblem)


def model_problems() -> st.SearchStrategy[ModelProblem]:
    """Problems for a language model."""
    return _problems(ModelProblem)


@st.composite
def _problems(draw: st.DrawFn, kind: Callable[..., Any]) -> Any:
    tokens = draw(st.integers(2, 12))
    return kind(
        batch=draw(st.integers(1, 3)),
        tokens=tokens,
        prefix=draw(st.integers(0, 6)),
        ragged=draw(st.booleans()),
        cuts=draw(cuts(tokens)),
        gain=draw(st.sampled_from([1, 3])),
        write=draw(st.sampled_from([True, True, False])),
        filled=draw(st.booleans()),
        seed=draw(seeds()),
    )


@torch.no_grad()
def _fill(component: nn.Module, generator: torch.Generator) -> None:
    """Make learned matrices of zeros random ones, as large as others are at initialisation."""
    for parameter in component.parameters():
        if parameter.dim() >= 2 and not parameter.any():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(noise / parameter.shape[-2] ** 0.5)


def copied_to(component: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same component in another precision."""
    return copy.deepcopy(component).to(dtype)
