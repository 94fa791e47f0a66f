"""A memory cut at its linear maps: products on one side, what lies between them on the other.

A pass hands every `linear` to the caller and takes its result as given, so that autograd sees only what the memory
and the objective do between products. Going back, the caller's products and autograd's pieces take turns. So products
can be done once and kept, and their slopes can be added up in place, for any memory and any objective.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import unhooked
from memkit.engine.core.tape import check_cut_off, check_twice, check_unused
from memkit.rule import Rule, Tokens

Product = Callable[[str, Tensor], Tensor]
"""The result of the linear map of a name: of its input, or of what meets its transpose."""


class Pass(NamedTuple):
    """inputs: name -> what each linear was given; outputs: what it gave back, cut off; result: the prediction."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    result: Tensor


class Writing(NamedTuple):
    """The tape of a block, in pieces: errors r at the outputs, and backs, r_s W^T, of weights with some before them."""

    forward: Pass
    errors: dict[str, Tensor]
    backs: dict[str, Tensor]


def passed(rule: Rule, x: Tensor, constants: dict[str, Tensor], product: Product) -> Pass:
    """Run the memory on x `[N, T, K]`; gradients are wanted of what is between."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor) -> Tensor:
        check_twice(rule, name, inputs)
        inputs[name], outputs[name] = x, product(name, x.detach()).detach().requires_grad_()
        return outputs[name]

    with unhooked(), torch.enable_grad():
        return Pass(inputs, outputs, rule.memory.forward(linear, x, constants))


def write_pass(
    rule: Rule,
    here: Tokens,
    constants: dict[str, Tensor],
    names: Collection[str],
    forth: Product,
    back: Callable[[str, Tensor, Tensor], Tensor | None],
    *,
    graph: bool,
    known: dict[str, Tensor] | None = None,
) -> Writing:
    """The pass over the keys and back to the errors.

    back(name, input, error): error W^T, or None where no other linear comes before. `graph`: the errors can be
    differentiated again. known: errors of linears, found by `forth`, that the loss need not be asked for. Raises
    `ValueError` as the tape does.
    """
    run = passed(rule, here.k, constants, forth)
    errors: dict[str, Tensor] = {}
    backs: dict[str, Tensor] = {}
    with unhooked(), torch.enable_grad():
        check_unused(rule, names, run.outputs)
        found = Sums(run.outputs.values(), graph=graph)
        if known:
            for name, error in known.items():
                found.add(run.outputs[name], error)
        else:
            found.pull(rule.objective.loss(run.result, here.v, here.gates).sum(), None)
        for name in reversed(run.outputs):
            error = found.of(run.outputs[name])
            if error is None:
                continue
            errors[name] = error
            slope = back(name, run.inputs[name], error.detach())
            if slope is not None:
                backs[name] = slope.detach().requires_grad_(graph)
                found.pull(run.inputs[name], backs[name])
    check_cut_off(rule, run.outputs, errors)
    return Writing(run, errors, backs)


def written_again(
    rule: Rule, here: Tokens, constants: dict[str, Tensor], outputs: dict[str, Tensor], backs: dict[str, Tensor]
) -> Writing:
    """The same pass as a graph over `here` and `constants`, from what its products found the first time."""

    def forth(name: str, x: Tensor) -> Tensor:
        return outputs[name]

    def back(name: str, x: Tensor, error: Tensor) -> Tensor | None:
        return backs.get(name)

    return write_pass(rule, here, constants, outputs, forth, back, graph=True)


class Sums:
    """Slopes of tensors that autograd begins at, added up as they arrive."""

    def __init__(self, leaves: Iterable[Tensor], *, graph: bool = False) -> None:
        self._leaves = list(leaves)
        self._graph = graph
        self._found: dict[int, Tensor] = {}

    def pull(self, result: Tensor, slope: Tensor | None) -> None:
        """Go back from a result with its slope, as far as the leaves; None is a slope of one."""
        if slope is not None and any(result is leaf for leaf in self._leaves):
            self.add(result, slope)
        elif result.requires_grad:
            found = torch.autograd.grad(
                result, self._leaves, slope, retain_graph=True, create_graph=self._graph, allow_unused=True
            )
            for leaf, new in zip(self._leaves, found, strict=True):
                if new is not None:
                    self.add(leaf, new)

    def add(self, leaf: Tensor, slope: Tensor) -> None:
        """Add a slope that has come as far as a leaf."""
        sofar = self._found.get(id(leaf))
        self._found[id(leaf)] = slope if sofar is None else sofar + slope

    def of(self, leaf: Tensor) -> Tensor | None:
        """What arrived at a leaf; None where nothing did."""
        return self._found.get(id(leaf))


def arrived_at(leaf: Tensor, sums: Iterable[Sums]) -> Tensor | None:
    """What arrived at a leaf in all of these together; None where nothing did."""
    some = [x for x in (each.of(leaf) for each in sums) if x is not None]
    return sum(some[1:], some[0]) if some else None
