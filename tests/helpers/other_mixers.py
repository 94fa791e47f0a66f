"""Mixers with every law kept and one departure from their papers, beside their honest twins.

The twins are the registered mixers with the same options; only a literal reference tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.bank import MemoryBank
from architectures.mac import MemoryAsContext
from architectures.mag import Gating, MemoryAsGate
from architectures.mal import MemoryAsLayer
from architectures.tnt import TNT
from literal_laws import DIM, HEADS, SPECS, made
from memkit.mixers.base import Mixer
from memkit.mixers.mamba2 import Mamba2
from memkit.mixers.neural_memory import NeuralMemory
from memkit.mixers.persistent import PersistentMemory


class NormWithout(nn.RMSNorm):
    """A norm of its input less one of the input's summands."""

    without: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.__dict__.pop("without"))


class WritesItsInputs(MemoryAsContext):
    """The memory reads x, not attention's output (eq. 24)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = NormWithout(self.dim, eps=1e-6)

    def _attend(self, x: Tensor, slot: Tensor, keys: Tensor, values: Tensor, state: Any) -> Tensor:
        y = super()._attend(x, slot, keys, values, state)
        self.norm.without = y
        return y


class RecallsToOnePlace(MemoryAsContext):
    """All recalled tokens stand at slot 0 (eq. 22)."""

    def _attend(self, x: Tensor, slot: Tensor, keys: Tensor, values: Tensor, state: Any) -> Tensor:
        recalled, own = keys.unbind(2)
        back = -torch.arange(recalled.shape[2], device=x.device)[None]
        return super()._attend(x, slot, torch.stack([self.rotary(recalled, back), own], 2), values, state)


class HalfGating(Gating):
    """One branch gates the other, and not the other way about."""

    def forward(self, core: Tensor, memory: Tensor) -> Tensor:
        y, m = self.norm_core(core), self.norm_memory(memory)
        return y * m.sigmoid() + m


class GatesOneBranch(MemoryAsGate):
    """Memory as a gate with half of its gating (eq. 28)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gating = HalfGating(self.dim)


class BeginsUnwritten(MemoryAsGate):
    """The persistent tokens are for the attention alone (eq. 26)."""

    def begin(self, tokens: Tensor) -> Any:
        return replace(super().begin(tokens), memory=self.memory.init_state(1))


class PassesNothingBy(MemoryAsLayer):
    """The attention reads the memory's output without x (section 4.4)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = NormWithout(self.dim, eps=1e-6)

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        self.norm.without = x
        return super().mix(x, state, mask, write)


class NormInside(nn.RMSNorm):
    """RMS(y) gate, given y gate. A closed gate, as of a masked token, leaves nothing of y."""

    gate: Tensor

    def forward(self, x: Tensor) -> Tensor:
        gate = self.__dict__.pop("gate")
        return super().forward(x / torch.where(gate == 0, 1.0, gate)) * gate


class NormsBeforeTheGate(Mamba2):
    """The output's norm comes first, and its gate after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = NormInside(self.inner, eps=1e-6)

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        self.norm.gate = F.silu(self.project(x)[..., : self.inner])
        return super().mix(x, state, mask, write)


class WritesWithoutTheStep(Mamba2):
    """h_t = a_t h_{t-1} + B_t x_t^T: the step dt decays and does not write."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        whole = replace(self.rule.optimizer, step=lambda grad, weight, slots, gates: (-grad, slots))
        self.rule = replace(self.rule, optimizer=whole)


class GlobalReadsAfter(TNT):
    """A chunk's last token reads the global memory after that chunk's write (eq. 5)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.whole.rule = replace(self.whole.rule, read="after")


class LevelReadsBefore(MemoryBank):
    """The slow memory does not show a token's write before the next token."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        slow: Any = self.memories[-1]
        slow.rule = replace(slow.rule, read="before")


class Gain(nn.RMSNorm):
    """The norm's gain without the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class ReadsLoudly(NeuralMemory):
    """The read is not normalized (section 4.4)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = Gain(self.width)


def _other(law: str, kind: Callable[..., Mixer]) -> Mixer:
    """The broken mixer, with the options of the honest one."""
    spec, _ = SPECS[law]
    inner = spec.get("mixer", spec)
    mixer = kind(dim=DIM, heads=HEADS, **{key: value for key, value in inner.items() if key != "name"})
    return PersistentMemory(mixer, spec["tokens"]) if "mixer" in spec else mixer


def _pair(law: str, kind: Callable[..., Mixer]) -> tuple[str, tuple[Callable[[], Mixer], Callable[[], Mixer]]]:
    return law, (partial(_other, law, kind), partial(made, SPECS[law][0]))


OTHER_MIXERS = {
    "neural memory that reads without a norm": _pair("neural memory", ReadsLoudly),
    "mac whose memory reads x, not attention's y": _pair("memory as context", WritesItsInputs),
    "mac that recalls all to slot 0": _pair("memory as context", RecallsToOnePlace),
    "mag with one branch ungated": _pair("memory as gate", GatesOneBranch),
    "mag that does not write its persistent tokens": _pair("memory as gate", BeginsUnwritten),
    "mal without its inner residual": _pair("memory as layer", PassesNothingBy),
    "tnt that reads its global memory after the write": _pair("tnt", GlobalReadsAfter),
    "bank that reads a level before its write": _pair("bank", LevelReadsBefore),
    "mamba2 with the norm before the gate": _pair("mamba2", NormsBeforeTheGate),
    "mamba2 without dt on the values": _pair("mamba2", WritesWithoutTheStep),
}
