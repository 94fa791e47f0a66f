"""A memory rule as data: four choices (memory, objective, optimizer, retention), and the meaning of time.

The update is written once, for one weight and one token: `Rule.update`. The engine derives the rest.
Rules are data and never import the engine.

Axes, here and everywhere: `B` batch, `T` tokens, `H` heads, `D` model width, `K` key width, `V` value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from memkit.cache_key import CacheKey, cache_key
from memkit.rule_checks import check_point, check_rule, declared_gates

Gates = Mapping[str, Tensor]
Slots = tuple[Tensor, ...]
Linear = Callable[[str, Tensor], Tensor]


class Tokens(NamedTuple):
    """The input of a memory: q, k `[..., T, K]`, v `[..., T, V]` and gates, all with the same axes in front."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]


@dataclass(frozen=True)
class Gate:
    """A number per token that a rule needs.

    low, high: the closed range of its intended use; `high` may be infinite.
    per: "head" for `[B, T, H]`, "key" for `[B, T, H, K]`, "value" for `[B, T, H, V]`, or "pair" for `[B, T, H, pairs]`,
        from which `prepare` makes one number per step.
    default: the value of a gate not given, a number or heads -> one for each; None makes the gate required.
    """

    name: str
    low: float
    high: float
    per: Literal["head", "key", "value", "pair"] = "head"
    default: float | Callable[[int], Sequence[float]] | None = None


class MemoryModel(Protocol):
    """A map from keys to values with fast weights.

    `forward` touches its fast weights only through `linear(name, x)`, for `x @ weight[name]`, each exactly once, and
    never mixes tokens; so the same lines write, read and decode. A parameter learned only in the outer loop (the gain
    of a norm) is a constant. A bias is a column of ones.
    """

    @property
    def linear(self) -> bool:
        """True if the memory is one matrix and nothing else."""
        ...

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """Return name -> (in, out) of every fast weight, from input to output."""
        ...

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """Return name -> initial value (1-D) of every constant."""
        ...

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Map x `[..., K]` to predictions `[..., V]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The attentional bias: the loss that a write reduces.

    loss(prediction `[..., V]`, target `[..., V]`, gates) -> `[...]`, one number per token.
    linear: whether the loss is linear in the prediction, so that its gradient there does not depend on the weights.
    quadratic: whether that gradient is h * prediction + r with one number h per token, as for every squared error;
        writes to a matrix can then be solved for. A law checks both claims.
    """

    name: str
    loss: Callable[[Tensor, Tensor, Gates], Tensor]
    gates: tuple[Gate, ...] = ()
    linear: bool = False
    quadratic: bool = False


def no_slots(weight: Tensor) -> Slots:
    """Return the slots of an optimizer or a retention without memory: none."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The way from a gradient to a step, on one weight: a few lines of arithmetic, valid for matrices and scalars.

    init(weight) -> slots, such as a momentum of zeros.
    step(grad, weight, slots, gates) -> (step, slots).
    linear: whether step and slots are linear in (grad, weight, slots); a law checks the claim.
    direction(step, gates) -> step: a nonlinear map of steps `[..., in, out]` before they meet the weight (Muon's
        orthogonalization). Slots do not see it, and a `step` with one depends on (grad, slots) alone.
    """

    name: str
    step: Callable[[Tensor, Tensor, Slots, Gates], tuple[Tensor, Slots]]
    init: Callable[[Tensor], Slots] = no_slots
    gates: tuple[Gate, ...] = ()
    linear: bool = True
    direction: Callable[[Tensor, Gates], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The part of the weight kept when a step arrives, on one weight.

    init(weight) -> constant slots, such as the weight to return to.
    keep(weight, step, slots, gates) -> weight.
    linear: whether the result is linear in (weight, step, slots); a law checks the claim.
    """

    name: str
    keep: Callable[[Tensor, Tensor, Slots, Gates], Tensor]
    init: Callable[[Tensor], Slots] = no_slots
    gates: tuple[Gate, ...] = ()
    linear: bool = True


Point = Callable[[Tensor, Slots, Gates], Tensor]
Prepare = Callable[[Tokens], Tokens]
Effective = Callable[[Tensor], Tensor]


def at_weights(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """Take gradients at the weight itself, as plain gradient descent."""
    return weight


def at_decayed(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """Take gradients at (1 - decay) M: forget first, then be surprised (Gated DeltaNet, KDA)."""
    return (1 - gates["decay"]) * weight


def at_lookahead(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """Take gradients at M + momentum S, a step of the momentum ahead (Nesterov)."""
    return weight + gates["momentum"] * slots[0]


def as_given(tokens: Tokens) -> Tokens:
    """Leave queries, keys, values and gates as they are."""
    return tokens


def identity(weight: Tensor) -> Tensor:
    """Use the raw weight."""
    return weight


WEIGHT = Gate("weight", 0.0, 1.0, default=1.0)
"""The share of a token's gradient in a write of several (ATLAS' gamma)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A memory's update as frozen data.

    point: (weight, slots, gates) -> the weight at which gradients are taken, linear in weight and slots.
    prepare: tokens (q, k, v, gates, `[B, T, H, ...]`) -> tokens, once per call and each token by itself: feature
        maps, implicit steps. prepare_gates: the gates it reads besides those of the parts.
    pairs: pairs of keys and values per token, k `[B, T, H, pairs K]`, v `[B, T, H, pairs V]` (DeltaProduct).
    steps: writes that `prepare` makes of each token, `[B, steps T, H, ...]`, one after the other; a token's query
        reads before its first or after its last.
    effective: raw weight -> the weight that the memory uses, a nonlinear map taken as a mini-batch begins; under
        read="after", a query that completes a mini-batch sees the next one.
    mini_batch: gradients see the weights at the last multiple of so many tokens (Titans eq. 16), 1 for the exact
        online rule. It changes the numbers; it is no setting for speed.
    read: whether a token's query sees its own write ("after") or not ("before").
    update_every: tokens per write: so many gradients, each times the gate `weight`, make one step.
    window: gradients per write, of the last so many tokens, each times `weight` (the Omega rule).
    weight: the gate of that name, for writes of several gradients.
    surprise_limit: norm to which each token's whole gradient is scaled down; None, as in the papers, for no limit.
    cache_key: an object shared by all rules that compute the same, for torch's compiler.

    Raises `ValueError` for combinations without a meaning.
    """

    name: str = "unnamed"
    memory: MemoryModel
    objective: Objective
    optimizer: Optimizer
    retention: Retention
    point: Point = at_weights
    prepare: Prepare = as_given
    prepare_gates: tuple[Gate, ...] = ()
    pairs: int = 1
    steps: int = 1
    effective: Effective = identity
    mini_batch: int = 16
    read: Literal["after", "before"] = "after"
    update_every: int = 1
    window: int = 1
    weight: Gate = WEIGHT
    surprise_limit: float | None = None
    gates: dict[str, Gate] = field(init=False, repr=False, compare=False)
    optimizer_slots: int = field(init=False, repr=False, compare=False)
    slots: int = field(init=False, repr=False, compare=False)
    cache_key: CacheKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_rule(
            self,
            moved=self.point is not at_weights,
            prepared=self.prepare is not as_given,
            bent=self.effective is not identity,
        )
        object.__setattr__(self, "gates", declared_gates(self))
        object.__setattr__(self, "optimizer_slots", len(self.optimizer.init(torch.zeros(()))))
        object.__setattr__(self, "slots", len(self.init_slots(torch.zeros(()))))
        check_point(self)
        object.__setattr__(self, "cache_key", cache_key(self))

    @property
    def weight_gates(self) -> tuple[Gate, ...]:
        """Gates of the optimizer and the retention, which meet the weights in a write."""
        return (*self.optimizer.gates, *self.retention.gates)

    @property
    def sees_weights(self) -> bool:
        """True if writes or reads depend on the weights at the mini-batch's start; if not, `mini_batch` is void."""
        return not (self.memory.linear and self.objective.linear) or self.effective is not identity

    @property
    def period(self) -> int:
        """Tokens after which a row's `offset` starts again: a mini-batch, or the tokens of a write."""
        return max(self.mini_batch, self.update_every) if self.sees_weights else self.update_every

    def init_slots(self, weight: Tensor) -> Slots:
        """Return the slots of a weight at the start of a document: the optimizer's, then the retention's."""
        return (*self.optimizer.init(weight), *self.retention.init(weight))

    def update(self, grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
        """Write once to one weight: the optimizer's step, then the retention. THE definition of the rule."""
        n = self.optimizer_slots
        step, moved = self.optimizer.step(grad, weight, slots[:n], gates)
        if self.optimizer.direction is not None:
            step = self.optimizer.direction(step, gates)
        return self.retention.keep(weight, step, slots[n:], gates), (*moved, *slots[n:])
