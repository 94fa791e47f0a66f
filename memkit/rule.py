"""A memory rule as data: four choices (memory, objective, optimizer, retention) and what time means.

The update is written once, for one weight and one token (`Rule.update`). The engine derives the rest.
Rules are data and never import the engine.

Axes, here and everywhere: `B` batch, `T` tokens, `H` heads, `D` model width, `K` key width, `V` value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from memkit.checks import check_point
from memkit.likeness import Kind, kind_of

Gates = Mapping[str, Tensor]
Slots = tuple[Tensor, ...]
Linear = Callable[[str, Tensor], Tensor]


class Tokens(NamedTuple):
    """What a memory reads: q, k `[..., T, K]`, v `[..., T, V]` and the gates, in one order of axes."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: dict[str, Tensor]


@dataclass(frozen=True)
class Gate:
    """A per-token number that a rule needs.

    low, high: the closed range in which the rule is meant to be used (`high` may be infinite).
    per: "head" for `[B, T, H]`, "key" for `[B, T, H, K]`, "value" for `[B, T, H, V]`, "pair" for `[B, T, H, pairs]`,
        of which `prepare` makes one number a step.
    default: what stands in where the gate is not given, a number, or heads -> one for each; None makes it required.
    """

    name: str
    low: float
    high: float
    per: Literal["head", "key", "value", "pair"] = "head"
    default: float | Callable[[int], Sequence[float]] | None = None


class MemoryModel(Protocol):
    """A map from keys to values whose weights are fast.

    `forward` touches its fast weights only through `linear(name, x)`, which stands for `x @ weight[name]`,
    each exactly once, and never mixes tokens; so the same lines serve writing, reading and decoding.
    What is learned in the outer loop only (the gain of a norm) is a constant. A bias is a column of ones.
    """

    @property
    def linear(self) -> bool:
        """Whether the memory is one matrix and nothing else."""
        ...

    def shapes(self, key_dim: int, value_dim: int) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of every fast weight, ordered from input to output."""
        ...

    def constants(self, key_dim: int, value_dim: int) -> dict[str, Tensor]:
        """Name -> initial value (1-D) of every constant."""
        ...

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Map x `[..., K]` to predictions `[..., V]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The attentional bias: what a write makes smaller.

    loss(prediction `[..., V]`, target `[..., V]`, gates) -> `[...]`, one number a token.
    linear: whether the loss is linear in the prediction, so that its gradient there sees no weights.
    quadratic: whether that gradient is h * prediction + r, with one number h a token, as that of every squared
        error is; writes of a matrix can then be solved for. A law checks both claims.
    """

    name: str
    loss: Callable[[Tensor, Tensor, Gates], Tensor]
    gates: tuple[Gate, ...] = ()
    linear: bool = False
    quadratic: bool = False


def no_slots(weight: Tensor) -> Slots:
    """Slots of an optimizer or a retention that remembers nothing."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a gradient becomes a step, on one weight: a few lines of arithmetic, valid for matrices and scalars.

    init(weight) -> slots, zero-cost memory such as the momentum.
    step(grad, weight, slots, gates) -> (step, slots).
    linear: whether step and slots are linear in (grad, weight, slots); a law checks the claim.
    direction(step, gates) -> step: what a step is turned into, `[..., in, out]`, before the weight meets it (Muon's
        orthogonalisation). It is not linear, and nothing that it makes is remembered; a `step` that has one looks
        at (grad, slots) alone. None: nothing.
    """

    name: str
    step: Callable[[Tensor, Tensor, Slots, Gates], tuple[Tensor, Slots]]
    init: Callable[[Tensor], Slots] = no_slots
    gates: tuple[Gate, ...] = ()
    linear: bool = True
    direction: Callable[[Tensor, Gates], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of the weight when a step arrives, on one weight.

    init(weight) -> slots that stay as they are (for example the weight to return to).
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
    """The gradient point of plain gradient descent: the weight itself."""
    return weight


def at_decayed(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """(1 - decay) M: forget first, then be surprised, as gated delta rules do (Gated DeltaNet, KDA)."""
    return (1 - gates["decay"]) * weight


def at_lookahead(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """M + momentum S: where the momentum alone would lead (Nesterov)."""
    return weight + gates["momentum"] * slots[0]


def as_given(tokens: Tokens) -> Tokens:
    """Leave queries, keys, values and gates as they are."""
    return tokens


def identity(weight: Tensor) -> Tensor:
    """The memory uses its raw weight."""
    return weight


WEIGHT = Gate("weight", 0.0, 1.0, default=1.0)
"""How much a token's gradient counts in a write that uses several (ATLAS' gamma)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A memory's update as frozen data.

    point: where the gradient is taken, from (weight, slots, gates) as a mini-batch begins; linear in weight and slots.
        A bend belongs to `effective`.
    prepare: tokens (q, k, v, gates, `[B, T, H, ...]`) -> the same, once per call, each token by itself: feature
        maps, implicit steps. prepare_gates: gates that it reads besides those of the parts.
    pairs: pairs of keys and values that a token brings: k `[B, T, H, pairs K]`, v `[B, T, H, pairs V]` (DeltaProduct).
    steps: writes that `prepare` makes of each token, `[B, steps T, H, ...]`, one behind the other; a token's query
        reads before its first or after its last.
    effective: raw weight -> the weight that the memory uses, taken when a mini-batch begins; a query that
        completes a mini-batch under read="after" sees the next one.
    mini_batch: gradients see the weights at the last multiple of so many tokens (Titans eq. 16); 1 is the
        exact online rule. This is meaning, not speed.
    read: whether token t's query sees its own write ("after") or not ("before").
    update_every: tokens per write: so many gradients, each times the gate `weight`, make one step.
    window: the Omega rule: each write uses the gradients of the last so many tokens, each times `weight`.
    weight: the gate of that name, for writes that use several gradients.
    surprise_limit: scale each token's whole gradient down to this norm; None, the papers' rule, does not.
    kind: what it shares with all rules that do the same, by which torch's compiler knows them.

    Raises `ValueError` for combinations that have no meaning.
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
    kind: Kind = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_rule(self)
        found: dict[str, Gate] = {}
        weighted = (self.weight,) if max(self.window, self.update_every) > 1 else ()
        for gate in (*self.objective.gates, *self.weight_gates, *self.prepare_gates, *weighted):
            if found.setdefault(gate.name, gate) != gate:
                raise ValueError(
                    f"rule {self.name!r}: two of its parts declare the gate {gate.name!r} differently: "
                    f"{found[gate.name]} and {gate}. Rename one of them."
                )
        object.__setattr__(self, "gates", found)
        object.__setattr__(self, "optimizer_slots", len(self.optimizer.init(torch.zeros(()))))
        object.__setattr__(self, "slots", len(self.init_slots(torch.zeros(()))))
        check_point(self)
        object.__setattr__(self, "kind", kind_of(self))

    @property
    def weight_gates(self) -> tuple[Gate, ...]:
        """The gates that a write meets at the weights: those of the optimizer and of the retention."""
        return (*self.optimizer.gates, *self.retention.gates)

    @property
    def sees_weights(self) -> bool:
        """Whether writes or reads depend on the weights at the mini-batch's start; else `mini_batch` means nothing."""
        return not (self.memory.linear and self.objective.linear) or self.effective is not identity

    @property
    def period(self) -> int:
        """Tokens after which the count of tokens starts again: the mini-batch, or the tokens of a write."""
        return max(self.mini_batch, self.update_every) if self.sees_weights else self.update_every

    def init_slots(self, weight: Tensor) -> Slots:
        """Slots of a weight at the start of a document: the optimizer's, then the retention's."""
        return (*self.optimizer.init(weight), *self.retention.init(weight))

    def update(self, grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
        """One write to one weight: the optimizer's step, then the retention. THE definition of the rule."""
        n = self.optimizer_slots
        step, moved = self.optimizer.step(grad, weight, slots[:n], gates)
        if self.optimizer.direction is not None:
            step = self.optimizer.direction(step, gates)
        return self.retention.keep(weight, step, slots[n:], gates), (*moved, *slots[n:])


def _check_rule(rule: Rule) -> None:
    for name in ("mini_batch", "update_every", "window", "pairs", "steps"):
        if not isinstance(value := getattr(rule, name), int) or value < 1:
            raise ValueError(f"rule {rule.name!r}: {name} is a count, so it must be an integer >= 1; got {value!r}.")
    if rule.weight.name != "weight" or rule.weight.per != "head":
        what = f"the gate of each gradient is called 'weight' and is per head; got {rule.weight}."
        raise ValueError(f"rule {rule.name!r}: {what}")
    if rule.read not in ("after", "before"):
        raise ValueError(f"rule {rule.name!r}: read is 'after' or 'before' (a token's own write); got {rule.read!r}.")
    if rule.update_every > 1 and (rule.mini_batch > 1 or rule.window > 1):
        raise ValueError(
            f"rule {rule.name!r}: update_every={rule.update_every} takes all its gradients at the last write's "
            "weights, so it needs mini_batch=1 and window=1."
        )
    if rule.steps % rule.pairs:
        raise ValueError(
            f"rule {rule.name!r}: 'prepare' makes steps={rule.steps} writes of a token's pairs={rule.pairs} pairs, so "
            "steps must be a multiple of pairs."
        )
    if rule.steps > 1 and max(rule.mini_batch, rule.update_every, rule.window) > 1:
        raise ValueError(
            f"rule {rule.name!r}: steps={rule.steps} makes several writes of a token, each at the weights that the "
            "one before left, so it needs mini_batch=1, update_every=1 and window=1."
        )
    per_channel = [gate.name for gate in rule.weight_gates if gate.per in ("key", "value")]
    if per_channel and not rule.memory.linear:
        raise ValueError(
            f"rule {rule.name!r}: the gates {per_channel} are per channel, which means something for a single matrix "
            "only. Use memory linear(), or gates per head."
        )
    per_pair = [gate.name for gate in rule.weight_gates if gate.per == "pair"]
    if per_pair and rule.prepare is as_given:
        what = f"the gates {per_pair} are per pair, and a write meets one number of each"
        raise ValueError(f"rule {rule.name!r}: {what}. Use a 'prepare' that makes a step of every pair.")
    if rule.effective is not identity and rule.point is not at_weights:
        what = "'effective' already says which weights gradients see, so it cannot be combined with another 'point'"
        raise ValueError(f"rule {rule.name!r}: {what}. Keep one of the two.")
    if rule.surprise_limit is not None and not rule.surprise_limit > 0:
        what = f"must be > 0, or None for no limit; got {rule.surprise_limit!r}"
        raise ValueError(f"rule {rule.name!r}: surprise_limit is a gradient norm, so it {what}.")
