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
"""Values of masked tokens: no result may depend on them."""
UNREAD_IDS = (-1, 10**9)
LONG = 300
"""Tokens of an adversarial stream."""
MOVED = 0.3
"""Standard deviation of the change of vectors in an enlarged component."""


class Sequence(Protocol):
    """The shared contract of mixers and language models; see `memkit.mixers.base.Mixer`."""

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
        """Reset some rows to the initial state."""
        ...

    def state_bytes(self, tokens: int) -> int:
        """Bytes of one row's state after `tokens` tokens."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class SequenceProblem(Replayable):
    """A small problem for a sequence component: sizes, a past, and a seed. The defaults are the smallest problem.

    prefix: tokens already read; ragged: their number differs between rows. cuts: two places in 0..tokens. gain: the
    factor of matrices in `enlarged`. write: whether the component learns. filled: replace initial matrices of zeros,
    as in a memory of one matrix, by random ones.
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
        """Random numbers of this problem; every use has its own `stream`."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def build(self, factory: Callable[[], Any]) -> Any:
        """A component in float64, initialized from the seed; if `filled`, without matrices of zeros."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            component = factory().double()
        if self.filled:
            _fill(component, self.generator(10))
        return component

    def enlarged(self, component: Any) -> Any:
        """A copy with matrices `gain` times larger, if gain is not 1, to show the effect of small or zero ones.

        Matrices of zeros, as in a memory of one matrix, become random. Vectors are biases, gains and logarithms, and
        move a little instead: three times the logarithm of a step size is its cube, and a memory with it would write
        almost nothing, and read the normalized noise of that.
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
        raise NotImplementedError(f"{type(self).__name__} has no inputs.")

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """The inputs, replaced by `UNREAD` values if `mask` `[B, T]` is false."""
        raise NotImplementedError(f"{type(self).__name__} has no values for masked tokens.")

    def adversarial(self, component: Any) -> Tensor:
        """A batch of long streams, one kind a row."""
        raise NotImplementedError(f"{type(self).__name__} has no adversarial streams.")

    @torch.no_grad()
    def state_after_prefix(self, component: Any) -> Any:
        """The state after the prefix, without history."""
        mask = self.mask(length=self.prefix, stream=4) if self.ragged else None
        return component(self.inputs(component, self.prefix, stream=3), mask=mask)[1]

    def state_for(self, component: Any) -> Any:
        """The state after the prefix, or a fresh one with gradients to the parameters."""
        return self.state_after_prefix(component) if self.prefix else component.init_state(self.batch)

    def mask(self, kind: MaskKind = "anywhere", length: int | None = None, stream: int = 5) -> Tensor:
        """`[B, T]`: holes anywhere, or padding on the left."""
        return draw_mask(kind, self.batch, self.tokens if length is None else length, self.generator(stream))

    def segment_ids(self) -> Tensor:
        """`[B, T]`: documents of random lengths."""
        return draw_segments(self.batch, self.tokens, self.generator(6))


@dataclass(frozen=True, kw_only=True, repr=False)
class MixerProblem(SequenceProblem):
    """A problem with inputs x `[B, T, D]`."""

    def inputs(self, component: Any, length: int | None = None, stream: int = 1) -> Tensor:
        """Normal x `[B, T, D]`, float64."""
        shape = (self.batch, self.tokens if length is None else length, component.dim)
        return torch.randn(shape, generator=self.generator(stream), dtype=torch.float64)

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """NaN, infinities and huge numbers at masked tokens."""
        junk = torch.tensor(UNREAD, dtype=inputs.dtype).repeat(inputs.numel() // len(UNREAD) + 1)
        return torch.where(mask[..., None], inputs, junk[: inputs.numel()].view_as(inputs))

    def adversarial(self, component: Any) -> Tensor:
        """Rows: one token forever, two in turn, random, and random times 100; float32."""
        x = replace(self, batch=4).inputs(component, LONG).float()
        x[0], x[1, 0::2], x[1, 1::2] = x[0, 0], x[1, 0].clone(), x[1, 1].clone()
        x[3] *= 100
        return x


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelProblem(SequenceProblem):
    """A problem with inputs ids `[B, T]`."""

    def inputs(self, component: Any, length: int | None = None, stream: int = 1) -> Tensor:
        """Uniform ids `[B, T]`."""
        shape = (self.batch, self.tokens if length is None else length)
        return torch.randint(component.vocab_size, shape, generator=self.generator(stream))

    def spoiled(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Ids outside of any vocabulary at masked tokens."""
        junk = torch.tensor(UNREAD_IDS).repeat(inputs.numel() // len(UNREAD_IDS) + 1)
        return torch.where(mask, inputs, junk[: inputs.numel()].view_as(inputs))

    def adversarial(self, component: Any) -> Tensor:
        """Rows: one id forever, two in turn, random."""
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
    """Replace learned matrices of zeros by random ones, as large as others at initialization."""
    for parameter in component.parameters():
        if parameter.dim() >= 2 and not parameter.any():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(noise / parameter.shape[-2] ** 0.5)


def copied_to(component: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the component in another precision."""
    return copy.deepcopy(component).to(dtype)
