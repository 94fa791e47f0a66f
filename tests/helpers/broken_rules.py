"""Rules with one fault each, and the law that is to find it. `HONEST` is the rule without a fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import memkit
from memkit.parts.memory import MLPMemory
from memkit.rule import Gates, Linear, Rule, Slots, Tokens

HONEST = memkit.build("rule", "titans", depth=2, expansion=2, mini_batch=4)
MATRIX = replace(HONEST, memory=memkit.build("memory", "linear"))


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


def always_forget(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """A weight decay of its own, which no gate switches off."""
    return (1 - gates["decay"]) * 0.99 * weight + step


def decay_the_step(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """The decay applied to the step as well."""
    return (1 - gates["decay"]) * (weight + step)


def mean_over_rows(tokens: Tokens) -> Tokens:
    """Values centred over the batch."""
    return tokens._replace(v=tokens.v - tokens.v.mean(0, keepdim=True))


def mean_over_heads(tokens: Tokens) -> Tokens:
    """Values centred over the heads."""
    return tokens._replace(v=tokens.v - tokens.v.mean(2, keepdim=True))


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


def bent(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """A loss that grows like a square near the target, and not so fast farther away."""
    return ((prediction - target).square().sum(-1) + 1).sqrt()


class HalfGradient(WrongBracket):
    """A squared error whose gradient lost its factor 2."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        prediction, target = ctx.saved_tensors
        return (prediction - target) * grads[0][..., None], None


def half_gradient(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """The loss with that gradient."""
    return HalfGradient.apply(prediction, target)  # type: ignore[return-value]


def distance(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """A norm without a square: it has no slope where the error is 0."""
    return (prediction - target).square().sum(-1).sqrt()


def loss_per_value(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """The sum over V forgotten."""
    return (prediction - target).square()


def step_of_a_row(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """A step that fits the weight only because it broadcasts."""
    step = -gates["lr"] * grad.mean(-1, keepdim=True)
    return step, slots


def turned_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """A step that lies on its side, which no square matrix shows."""
    return -gates["lr"] * (grad.mT if grad.dim() > 1 else grad), slots


def keep_positive(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """Weights clamped to be positive, as if they were probabilities."""
    return ((1 - gates["decay"]) * weight + step).clamp(min=1e-8)


def bent_point(weight: Tensor, slots: Slots, gates: Gates) -> Tensor:
    """A gradient point that is no sum of weight and slots."""
    return weight.tanh()


def mean_over_tokens(tokens: Tokens) -> Tokens:
    """Values centred over the sequence."""
    return tokens._replace(v=tokens.v - tokens.v.mean(1, keepdim=True))


def gates_of_the_batch(tokens: Tokens) -> Tokens:
    """One gate for all rows: their mean."""
    gates = {name: gate.mean(0, keepdim=True).expand_as(gate) for name, gate in tokens.gates.items()}
    return tokens._replace(gates=gates)


def gates_of_the_call(tokens: Tokens) -> Tokens:
    """One gate for all tokens of a call: their mean."""
    gates = {name: gate.mean(1, keepdim=True).expand_as(gate) for name, gate in tokens.gates.items()}
    return tokens._replace(gates=gates)


@dataclass(frozen=True)
class LastLayerOnly(MLPMemory):
    """A memory of which only the last layer is ever written."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        return linear("w2", torch.nn.functional.silu(linear("w1", x)).detach())


@dataclass(frozen=True)
class TiedMemory(MLPMemory):
    """A memory that uses its first weight twice."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        return linear("w2", torch.nn.functional.silu(linear("w1", x) + linear("w1", x)))


@dataclass(frozen=True)
class CancellingMemory(MLPMemory):
    """A memory whose output is the difference of large numbers."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        return (super().forward(linear, x, constants) + 1000) - 1000


@dataclass(frozen=True)
class FusedNormMemory(MLPMemory):
    """A residual memory with torch's fused layer norm, whose third derivative is wrong."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        hidden = linear("w2", torch.nn.functional.silu(linear("w1", x)))
        return x + torch.nn.functional.layer_norm(hidden, hidden.shape[-1:]) * constants["gain"] + constants["bias"]


@dataclass(frozen=True)
class FlatBendMemory(MLPMemory):
    """A memory whose activation, written by hand, has a constant for a second derivative."""

    def forward(self, linear: Linear, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        return linear("w2", FlatBend.apply(linear("w1", x)))  # type: ignore[arg-type]


class FlatBend(torch.autograd.Function):
    """SiLU."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.nn.functional.silu(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return FlatBendBack.apply(grads[0], *ctx.saved_tensors)  # type: ignore[return-value]


class FlatBendBack(torch.autograd.Function):
    """Its first derivative; the second, without a graph, is right, and all after it are 0."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(grad, z)
        return torch.ops.aten.silu_backward(grad, z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad, z = ctx.saved_tensors
        with torch.no_grad():
            s = torch.sigmoid(z)
            bend = s * (1 - s) * (2 + z - 2 * z * s)
        return FlatBendBack.apply(grads[0], z), grad * grads[0] * bend  # type: ignore[return-value]


def with_part(part: str, **changes: Any) -> Rule:
    """The honest rule with fields of one part changed."""
    return replace(HONEST, **{part: replace(getattr(HONEST, part), **changes)})


RULES: dict[str, tuple[str, Rule]] = {
    "ascent by double negation": ("descent", with_part("optimizer", step=ascend)),
    "clipping, said to be linear": ("linear as declared", with_part("optimizer", step=clip)),
    "a loss that bends, said to be quadratic": ("linear as declared", with_part("objective", loss=bent)),
    "forget gate swapped": ("clearing gates", with_part("retention", keep=keep_forgotten)),
    "decay that no gate switches off": ("neutral gates", with_part("retention", keep=always_forget)),
    "bracket in a hand-written gradient": ("inner gradient", with_part("objective", loss=wrong_bracket)),
    "factor lost in a hand-written gradient": ("inner gradient", with_part("objective", loss=half_gradient)),
    "only the last layer written": ("inner gradient", replace(HONEST, memory=LastLayerOnly(2, 2, "silu", False))),
    "loss that is said to be linear": ("linear as declared", with_part("objective", linear=True)),
    "gradient point that bends": ("linear as declared", replace(HONEST, point=bent_point)),
    "weights clamped to be positive": ("neutral gates", with_part("retention", keep=keep_positive, linear=False)),
    "norm without a square": ("finite", with_part("objective", loss=distance, quadratic=False)),
    "loss for every value": ("shapes", with_part("objective", loss=loss_per_value)),
    "step that only broadcasts": ("shapes", with_part("optimizer", step=step_of_a_row)),
    "step that is transposed": ("shapes", replace(MATRIX, optimizer=replace(MATRIX.optimizer, step=turned_step))),
    "weight used twice": ("shapes", replace(HONEST, memory=TiedMemory(2, 2, "silu", False))),
    "fused layer norm": ("second gradient", replace(HONEST, memory=FusedNormMemory(2, 2, "silu", True))),
    "activation with a flat bend": ("second gradient", replace(HONEST, memory=FlatBendMemory(2, 2, "silu", False))),
    "difference of large numbers": ("single precision", replace(HONEST, memory=CancellingMemory(2, 2, "silu", False))),
    "mean over the tokens": ("causality", replace(HONEST, prepare=mean_over_tokens)),
    "gates averaged over the batch": ("rows apart", replace(HONEST, prepare=gates_of_the_batch)),
    "gates averaged over the call": ("causality", replace(HONEST, prepare=gates_of_the_call)),
    "mean over the batch": ("rows apart", replace(HONEST, prepare=mean_over_rows)),
    "mean over the heads": ("heads apart", replace(HONEST, prepare=mean_over_heads)),
}
