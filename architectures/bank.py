"""The Continuum Memory System of Nested Learning (arXiv 2512.24695): memories that learn at different frequencies.

    y_t = Agg(M^(f_k)(x_t), ..., M^(f_1)(x_t))                                                      (74)
    theta^(l)_{i+1} = theta^(l)_i - sum_{t = i - C_l .. i} eta_t grad(theta^(l)_i; x_t)
                      if i = 0 mod C_l, else theta^(l)_i                                             (71)

A slow memory keeps contents that a fast one has long overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from architectures.language_model import LanguageModel
from architectures.uniform import uniform_model
from memkit.checks import positive
from memkit.mixers.base import Mixer, MixerState
from memkit.mixers.neural_memory import NeuralMemory
from memkit.mixers.specs import RuleSpec, every_so_often, one_each
from memkit.registry import register, takes_options_of

LEVELS = (1, 16, 256)


@dataclass(frozen=True, kw_only=True)
class BankState(MixerState):
    """The states of the memories, in the order of the levels."""

    memories: tuple[Any, ...]


@register("mixer", "bank")
@takes_options_of(NeuralMemory, but=("products",))
class MemoryBank(Mixer):
    """Memories of one input, each with its own number of tokens per write; a learned sum of their outputs.

    levels: C_l, the tokens per write of each memory. Between its writes a memory's weights rest, so the level's rule
    is the given one with `update_every` = C_l and without a mini-batch. Symbols: eta_t = `weight` of a token times
    `lr` of the write; Agg, left open by the paper, weighs each channel of each level.
    rule: one for all levels, or a list of one for each. Other options as for `neural_memory`, for all levels, without
    `products`: it is for mini-batches, and no level has any. The paper's chain of levels (70) is layers of a single
    level each, one behind the other. Its long version learns by the model's loss; a memory here by its rule's
    objective.

    Raises `ValueError` without levels, for levels below 1, another number of rules than of levels, and a rule that
    cannot write once in several tokens.
    """

    state_type = BankState

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 4,
        levels: Sequence[int] = LEVELS,
        rule: RuleSpec | list[RuleSpec] = "titans",
        **memory: Any,
    ) -> None:
        if not levels:
            raise ValueError(f"a bank needs at least one level, such as levels={list(LEVELS)}.")
        for level in levels:
            positive("a level, in tokens per write,", level)
        super().__init__(dim)
        rules = [every_so_often(one, n) for n, one in zip(levels, one_each(rule, len(levels), "levels"), strict=True)]
        self.memories = nn.ModuleList(NeuralMemory(dim=dim, heads=heads, rule=one, **memory) for one in rules)
        self.weights = nn.Parameter(torch.full((len(levels), dim), 1 / len(levels)))

    def init_state(self, batch: int) -> BankState:
        """Return every memory at its start."""
        return self._state([memory.init_state(batch) for memory in self._memories])

    def begin(self, tokens: Tensor) -> BankState:
        """Write persistent tokens to every memory."""
        return self._state([memory.begin(tokens) for memory in self._memories])

    def mix(self, x: Tensor, state: BankState, mask: Tensor | None, write: bool) -> tuple[Tensor, BankState]:
        """Map one piece of a document; see `Mixer`."""
        parts, states = [], []
        for memory, held in zip(self._memories, state.memories, strict=True):
            y, held = memory(x, held, mask=mask, write=write)
            parts.append(y)
            states.append(held)
        y = (torch.stack(parts, 2) * self.weights).sum(2)  # (74)
        return y, replace(state, memories=tuple(states))

    @property
    def _memories(self) -> list[NeuralMemory]:
        return list(self.memories)  # type: ignore[arg-type]

    @staticmethod
    def _state(memories: list[Any]) -> BankState:
        return BankState(segment=memories[0].segment, memories=tuple(memories))


@register("architecture", "bank")
@takes_options_of(uniform_model, MemoryBank)
def bank(**options: Any) -> LanguageModel:
    """Memories of different frequencies, side by side in every layer.

    persistent: learned tokens in front of every layer, 0 for none. feed_forward: width of each SwiGLU in multiples of
    dim. checkpoint: compute layers again in the backward pass instead of keeping them. Others: as for the mixer `bank`.
    """
    return uniform_model(MemoryBank, **options)
