"""The tape: one pass over the keys that yields every token's gradient without forming it.

Running the memory at fixed weights records, for each `linear`, its input a_s and output; autograd gives the error r_s
at the output. Token s's gradient of that weight is then a_s^T r_s, for any differentiable objective and any depth, and
its squared norm is |a_s|^2 |r_s|^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, unhooked
from memkit.engine.core.memory_checks import check_cut_off, check_twice, check_unused
from memkit.engine.core.surprise import Observed, limit_errors, squared_surprise
from memkit.rule import Gates, Rule
from memkit.state import map_tensors


class Tape(NamedTuple):
    """Inputs `[N, S, in]` and errors `[N, S, out]` by name; loss, and squared gradient norms if asked for, `[N, S]`."""

    inputs: dict[str, Tensor]
    errors: dict[str, Tensor]
    loss: Tensor
    squared_surprise: Tensor | None

    def observed(self, tokens: int) -> Observed | None:
        """Loss and surprise of the last `tokens` sources, if surprise was asked for."""
        if self.squared_surprise is None:
            return None
        return Observed(self.loss.detach()[:, -tokens:], self.squared_surprise.detach()[:, -tokens:].sqrt())


def record(
    rule: Rule,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    weights: dict[str, Tensor],
    constants: dict[str, Tensor],
    *,
    surprise: bool = False,
) -> Tape:
    """Write k `[N, S, K]` -> v `[N, S, V]`, all tokens at the same weights; `surprise` asks for gradient norms.

    Errors keep a graph only where gradients can flow to something given. Raises `ValueError` when the memory does not
    use each of its weights exactly once, or cuts one off from the loss.
    """
    graph = graph_wanted((k, v, dict(gates), weights, constants))
    if not graph:
        k, v, gates, weights, constants = map_tensors(_detached, (k, v, dict(gates), weights, constants))
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor) -> Tensor:
        check_twice(rule, name, inputs)
        out = x @ weights[name]
        inputs[name], outputs[name] = x, (out if out.requires_grad else out.requires_grad_())  # for its error
        return outputs[name]

    with unhooked(), torch.enable_grad():
        loss = rule.objective.loss(rule.memory.forward(linear, k, constants), v, gates)
        check_unused(rule, weights, outputs)
        errors = gradients(rule, loss, outputs, graph=graph)
    if not graph:
        inputs, loss = map_tensors(Tensor.detach, (inputs, loss))
    if not surprise and rule.surprise_limit is None:
        return Tape(inputs, errors, loss, None)
    squared = squared_surprise(inputs, errors)
    return Tape(inputs, limit_errors(rule, squared, errors), loss, squared)


def gradients(rule: Rule, loss: Tensor, of: dict[str, Tensor], *, graph: bool) -> dict[str, Tensor]:
    """d loss / d each tensor, by the name of its weight; `graph`: they can be differentiated again.

    Raises `ValueError` where the loss does not depend on one.
    """
    found: Sequence[Tensor | None] = [None] * len(of)
    if loss.requires_grad:
        compiled = torch.compiler.is_compiling()  # zeros instead of None, which a compiler would have to ask about
        found = torch.autograd.grad(
            loss.sum(), list(of.values()), create_graph=graph, allow_unused=True, materialize_grads=compiled
        )
    kept = {name: gradient for name, gradient in zip(of, found, strict=True) if gradient is not None}
    check_cut_off(rule, of, kept)
    return kept


def _detached(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x  # most often there is no history
