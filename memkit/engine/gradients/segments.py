"""A memory cut at its matrix products, so that autograd sees only the segments between them.

`forward_pass` and `write_pass` hand every `linear` to a callback and detach its result. A backward pass then takes
turns: a hand-written VJP for each product, autograd for each segment. So products run once, their results can be kept,
and their gradients be summed in place, for any memory and any objective.

Shapes: tokens `[N, T, ...]`; per weight, inputs `[N, T, in]`, outputs and errors `[N, T, out]`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import unhooked
from memkit.engine.core.tape import check_cut_off, check_twice, check_unused
from memkit.rule import Rule, Tokens

LinearFwd = Callable[[str, Tensor], Tensor]
"""(name, input) -> the output of the linear map of that name."""
LinearVjp = Callable[[str, Tensor, Tensor], Tensor | None]
"""(name, input, error) -> error W^T, or None if the input depends on no other linear map."""


class ForwardPass(NamedTuple):
    """Every linear map's input and detached output, by name, and the memory's result."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    result: Tensor


class WritePass(NamedTuple):
    """The tape of a block in segments.

    errors: gradients of the loss at the outputs. grad_inputs: errors W^T, for linear maps behind another one.
    """

    forward: ForwardPass
    errors: dict[str, Tensor]
    grad_inputs: dict[str, Tensor]

    def leaves(self, tokens: Tokens, constants: dict[str, Tensor]) -> list[Tensor]:
        """Return the tensors at which segments begin: results of products, and the pass's own arguments."""
        arguments = [tokens.k, tokens.v, *tokens.gates.values(), *constants.values()]
        return [*self.forward.outputs.values(), *self.grad_inputs.values(), *arguments]


def forward_pass(rule: Rule, x: Tensor, constants: dict[str, Tensor], linear_fwd: LinearFwd) -> ForwardPass:
    """Run the memory on x `[N, T, K]`, with an autograd graph of the segments."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor) -> Tensor:
        check_twice(rule, name, inputs)
        inputs[name], outputs[name] = x, linear_fwd(name, x.detach()).detach().requires_grad_()
        return outputs[name]

    with unhooked(), torch.enable_grad():
        return ForwardPass(inputs, outputs, rule.memory.forward(linear, x, constants))


def write_pass(
    rule: Rule,
    tokens: Tokens,
    constants: dict[str, Tensor],
    names: Collection[str],
    linear_fwd: LinearFwd,
    linear_vjp: LinearVjp,
    *,
    graph: bool,
    solved_errors: dict[str, Tensor] | None = None,
) -> WritePass:
    """Run keys through the memory, and the loss back to the errors.

    graph: keep the errors differentiable. solved_errors: errors found by `linear_fwd` itself; if there are any, the
    backward pass starts from them instead of from the loss. Raises `ValueError` as the tape does.
    """
    forward = forward_pass(rule, tokens.k, constants, linear_fwd)
    errors: dict[str, Tensor] = {}
    grad_inputs: dict[str, Tensor] = {}
    with unhooked(), torch.enable_grad():
        check_unused(rule, names, forward.outputs)
        sums = GradientSums(forward.outputs.values(), graph=graph)
        if solved_errors:
            for name, error in solved_errors.items():
                sums.add(forward.outputs[name], error)
        else:
            sums.pull(rule.objective.loss(forward.result, tokens.v, tokens.gates).sum(), None)
        for name in reversed(forward.outputs):
            error = sums.get(forward.outputs[name])
            if error is None:
                continue
            errors[name] = error
            grad_input = linear_vjp(name, forward.inputs[name], error.detach())
            if grad_input is not None:
                grad_inputs[name] = grad_input.detach().requires_grad_(graph)
                sums.pull(forward.inputs[name], grad_inputs[name])
    check_cut_off(rule, forward.outputs, errors)
    return WritePass(forward, errors, grad_inputs)


def replay_write_pass(
    rule: Rule,
    tokens: Tokens,
    constants: dict[str, Tensor],
    outputs: dict[str, Tensor],
    grad_inputs: dict[str, Tensor],
) -> WritePass:
    """Repeat a write pass as a graph over `tokens` and `constants`; products are looked up, not computed."""

    def linear_fwd(name: str, x: Tensor) -> Tensor:
        return outputs[name]

    def linear_vjp(name: str, x: Tensor, error: Tensor) -> Tensor | None:
        return grad_inputs.get(name)

    return write_pass(rule, tokens, constants, outputs, linear_fwd, linear_vjp, graph=True)


def write_pass_vjp(
    tape: WritePass,
    leaves: list[Tensor],
    grad_input_vjp: Callable[[str, Tensor | None], Tensor | None],
    output_vjp: Callable[[str, Tensor | None], Tensor | None],
) -> GradientSums:
    """Return the gradients of a replayed write pass's leaves: errors to outputs, then outputs to keys.

    Callbacks are the VJPs of products, and know the gradients that arrive from outside. grad_input_vjp(name, gradient
    of grad_inputs[name]) -> gradient of the error; output_vjp(name, gradient of the output) -> gradient of the input.
    """
    sums = GradientSums(leaves)
    for name in tape.forward.outputs:
        grad_input = tape.grad_inputs.get(name)
        grad_error = grad_input_vjp(name, None if grad_input is None else sums.get(grad_input))
        if grad_error is not None:
            sums.pull(tape.errors[name], grad_error)
    for name in reversed(tape.forward.outputs):
        grad_x = output_vjp(name, sums.get(tape.forward.outputs[name]))
        if grad_x is not None:
            sums.pull(tape.forward.inputs[name], grad_x)
    return sums


class GradientSums:
    """Running sums of the gradients of some tensors, the leaves of segments."""

    def __init__(self, leaves: Iterable[Tensor], *, graph: bool = False) -> None:
        self._leaves = list(leaves)
        self._graph = graph
        self._sums: dict[int, Tensor] = {}

    def pull(self, result: Tensor, gradient: Tensor | None) -> None:
        """Backpropagate the gradient of a result (None: ones) to the leaves, through one segment."""
        if gradient is not None and any(result is leaf for leaf in self._leaves):
            self.add(result, gradient)
        elif result.requires_grad:
            gradients = torch.autograd.grad(
                result, self._leaves, gradient, retain_graph=True, create_graph=self._graph, allow_unused=True
            )
            for leaf, new in zip(self._leaves, gradients, strict=True):
                if new is not None:
                    self.add(leaf, new)

    def add(self, leaf: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of a leaf."""
        total = self._sums.get(id(leaf))
        self._sums[id(leaf)] = gradient if total is None else total + gradient

    def get(self, leaf: Tensor) -> Tensor | None:
        """Return the gradient of a leaf, or None if it received none."""
        return self._sums.get(id(leaf))


def total_gradient(leaf: Tensor, sums: Iterable[GradientSums]) -> Tensor | None:
    """Return the gradient of a leaf over several sums, or None if it received none."""
    gradients = [x for x in (each.get(leaf) for each in sums) if x is not None]
    return sum(gradients[1:], gradients[0]) if gradients else None
