"""The laws are tested themselves: each fault is killed by the law named for it, which its honest twin keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running_mean import RunningMean
from torch import Tensor, nn

import memkit
from memkit.mixers.base import Mixer
from memkit.mixers.conv import ShortConv
from memkit.mixers.neural_memory import NeuralMemory
from memkit.rule import Gates, Rule, Slots
from memkit.state import map_tensors
from memkit.testing import Engine, LawBroken, check_mixer, check_rule

HONEST = memkit.build("rule", "titans", depth=2, expansion=2, mini_batch=4)
MATRIX = memkit.build("rule", "titans", depth=1, mini_batch=3)


def ascend(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """The gradient negated twice."""
    step = gates["momentum"] * slots[0] + gates["lr"] * grad
    return step, (step,)


def clip(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """Clipping by default, in an optimizer that says it is linear."""
    step = gates["momentum"] * slots[0] - gates["lr"] * grad.clamp(-0.1, 0.1)
    return step, (step,)


def keep_forgotten(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """The forget gate taken for a keep gate."""
    return gates["decay"] * weight + step


def mean_over_rows(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """One memory for the whole batch."""
    kept = (1 - gates["decay"]) * weight + step
    return kept.mean(0, keepdim=True).expand_as(kept) if kept.dim() == 3 else kept


class WrongBracket(torch.autograd.Function):
    """A squared error whose gradient was written by hand, and wrongly."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, target)
        return (prediction - target).square().sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        prediction, target = ctx.saved_tensors
        return 2 * prediction - target * grads[0][..., None], None


def wrong_bracket(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """The loss with that gradient."""
    return WrongBracket.apply(prediction, target)  # type: ignore[return-value]


def with_parts(rule: Rule, **changes: Any) -> Rule:
    """The rule with fields of its optimizer, retention or objective changed: `optimizer_step=...`."""
    for name, value in changes.items():
        part, field = name.split("_", 1)
        rule = replace(rule, **{part: replace(getattr(rule, part), **{field: value})})
    return rule


def drops_momentum(rule: Rule, *args: Any, **kwargs: Any) -> Any:
    """The momentum is not handed to the next call."""
    y, state = memkit.memorize(rule, *args, **kwargs)
    return y, replace(state, slots=map_tensors(torch.zeros_like, state.slots))


def masks_lr_only(
    rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, *, mask: Any = None, **kwargs: Any
) -> Any:
    """A mask that zeroes the learning rate, while momentum and decay go on."""
    if mask is not None:
        gates = {**gates, "lr": torch.where(mask[..., None], gates["lr"], 0)}
        q, k, v = (torch.where(mask[..., None, None], x, 0) for x in (q, k, v))
        gates = {name: gate.nan_to_num(0.0, 0.0, 0.0) for name, gate in gates.items()}
    y, state = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return (y if mask is None else torch.where(mask[..., None, None], y, 0)), state


def block_is_meaning(rule: Rule, *args: Any, block_size: int = 64, **kwargs: Any) -> Any:
    """Speed that changes the answer: gradients see the weights at the last block."""
    return memkit.memorize(replace(rule, mini_batch=min(rule.mini_batch, block_size)), *args, **kwargs)


def reads_the_end(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Any:
    """Queries are read after all of the call's writes."""
    _, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    return memkit.retrieve(rule, after, q), after


def forgets_the_anchor(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Any:
    """Each call begins a mini-batch of its own."""
    fresh = replace(state, offset=torch.zeros_like(state.offset), phase=0)
    return memkit.memorize(rule, q, k, v, gates, fresh, **kwargs)


def writes_in_place(rule: Rule, q: Any, k: Any, v: Any, gates: Any, state: Any, **kwargs: Any) -> Any:
    """The caller's state changes under its feet."""
    y, after = memkit.memorize(rule, q, k, v, gates, state, **kwargs)
    with torch.no_grad():
        for name, weight in state.weights.items():
            weight.copy_(after.weights[name])
    return y, after


RULES: dict[str, tuple[str, Callable[[], Any]]] = {
    "ascent by double negation": ("descent", lambda: with_parts(HONEST, optimizer_step=ascend)),
    "clipping, said to be linear": ("linear as declared", lambda: with_parts(HONEST, optimizer_step=clip)),
    "forget gate swapped": ("clearing gates", lambda: with_parts(HONEST, retention_keep=keep_forgotten)),
    "memory shared by the batch": ("rows apart", lambda: with_parts(MATRIX, retention_keep=mean_over_rows)),
    "bracket in a hand-written gradient": ("inner gradient", lambda: with_parts(MATRIX, objective_loss=wrong_bracket)),
}
ENGINES: dict[str, tuple[str, Callable[..., Any]]] = {
    "momentum dropped at hand-off": ("split anywhere", drops_momentum),
    "mask that only zeroes lr": ("masked token", masks_lr_only),
    "block size that means something": ("block size is speed", block_is_meaning),
    "read after the whole call's write": ("causality", reads_the_end),
    "mini-batch begun anew by each call": ("decode is prefill", forgets_the_anchor),
    "state mutated": ("state is a value", writes_in_place),
}


@pytest.mark.parametrize("fault", RULES)
def test_a_broken_rule_is_killed(fault: str) -> None:
    law, made = RULES[fault]
    check_rule(HONEST if law != "rows apart" else MATRIX, laws=[law])
    with pytest.raises(LawBroken, match=law):
        check_rule(made(), laws=[law])


@pytest.mark.parametrize("fault", ENGINES)
def test_a_broken_engine_is_killed(fault: str) -> None:
    law, broken = ENGINES[fault]
    check_rule(HONEST, laws=[law])
    with pytest.raises(LawBroken, match=law):
        check_rule(HONEST, laws=[law], engine=Engine(memorize=broken))


class LooksAhead(RunningMean):
    """A symmetric convolution: each token sees its right neighbour."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x + F.pad(x, (0, 0, 0, 1))[:, 1:], state, mask, write)


class CountsMasked(RunningMean):
    """Masked tokens count as positions."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x, state, None, write)


class Hidden(RunningMean):
    """State in a buffer."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.register_buffer("calls", torch.zeros(()))

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        self.calls = self.calls + 1
        y, state = super().mix(x, state, mask, write)
        return y * self.calls, state


class Dead(RunningMean):
    """A parameter that nothing reads."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(dim=dim)
        self.unused = nn.Parameter(torch.ones(dim))


class ForgetfulConv(ShortConv):
    """A convolution whose last inputs are not carried to the next call."""

    def forward(self, x: Tensor, tail: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, _ = super().forward(x, tail, mask)
        return y, torch.zeros_like(tail)


class AlwaysWrites(NeuralMemory):
    """Reading learns too."""

    def mix(self, x: Tensor, state: Any, mask: Tensor | None, write: bool) -> tuple[Tensor, Any]:
        return super().mix(x, state, mask, True)


@dataclass(frozen=True)
class Memory:
    """Makes the neural memory, or a broken one."""

    kind: type[NeuralMemory] = NeuralMemory
    conv: type[ShortConv] = ShortConv

    def __call__(self) -> Mixer:
        made = self.kind(dim=8, heads=2, rule=MATRIX)
        made.qkv.conv = self.conv(24)
        return made


MIXERS: dict[str, tuple[str, Callable[[], Mixer], Callable[[], Mixer]]] = {
    "symmetric convolution": ("causality", lambda: LooksAhead(dim=8), lambda: RunningMean(dim=8)),
    "masked tokens counted": ("masked token", lambda: CountsMasked(dim=8), lambda: RunningMean(dim=8)),
    "state in a buffer": ("state is a value", lambda: Hidden(dim=8), lambda: RunningMean(dim=8)),
    "dead parameter": ("every parameter learns", lambda: Dead(dim=8), lambda: RunningMean(dim=8)),
    "convolution's tail not carried": ("split anywhere", Memory(conv=ForgetfulConv), Memory()),
    "reading that writes": ("reading does not write", Memory(kind=AlwaysWrites), Memory()),
}


@pytest.mark.parametrize("fault", MIXERS)
def test_a_broken_mixer_is_killed(fault: str) -> None:
    law, broken, honest = MIXERS[fault]
    check_mixer(honest, laws=[law])
    with pytest.raises(LawBroken, match=law):
        check_mixer(broken, laws=[law])
