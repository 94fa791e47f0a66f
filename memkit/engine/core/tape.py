"""The tape: one pass over the keys that yields every token's gradient without forming it.

Running the memory at fixed weights records, for each `linear`, its input a_s and output; autograd gives
the error r_s at the output. Token s's gradient of that weight is then a_s^T r_s, for any differentiable
objective and any depth, and its squared norm is |a_s|^2 |r_s|^2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memkit.autograd import graph_wanted, unhooked
from memkit.rule import Gates, Linear, Rule
from memkit.state import map_tensors


class Tape(NamedTuple):
    """inputs, errors: name -> `[N, S, in]`, `[N, S, out]`; loss, surprise `[N, S]` (gradient norm, squared)."""

    inputs: dict[str, Tensor]
    errors: dict[str, Tensor]
    loss: Tensor
    squared_surprise: Tensor | None


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

    Raises `ValueError` when the memory does not use each of its weights exactly once, or cuts one off from the loss.
    """
    graph = graph_wanted((k, v, dict(gates), weights, constants))
    if not graph:
        k, v, gates, weights, constants = map_tensors(_number, (k, v, dict(gates), weights, constants))
    return record_through(
        rule, k, v, gates, lambda name, x: x @ weights[name], weights.keys(), constants, graph=graph, surprise=surprise
    )


def record_through(
    rule: Rule,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    apply: Linear,
    names: Collection[str],
    constants: dict[str, Tensor],
    *,
    graph: bool,
    surprise: bool = False,
) -> Tape:
    """The same through any `apply(name, x)` that says what x meets at each token; `graph`: the errors keep theirs."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor) -> Tensor:
        check_twice(rule, name, inputs)
        out = apply(name, x)
        inputs[name], outputs[name] = x, out if out.requires_grad else out.requires_grad_()
        return outputs[name]

    with unhooked(), torch.enable_grad():
        loss = rule.objective.loss(rule.memory.forward(linear, k, constants), v, gates)
        check_unused(rule, names, outputs)
        errors = slopes(rule, loss, outputs, graph=graph)
    if not graph:
        inputs, loss = map_tensors(Tensor.detach, (inputs, loss))
    squared = squared_surprise(inputs, errors) if surprise or rule.surprise_limit is not None else None
    return Tape(inputs, errors if squared is None else limited(rule, squared, errors), loss, squared)


def limited(rule: Rule, squared: Tensor, errors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Errors under the rule's limit, if it has one, of gradient norms, whose squares are given."""
    if rule.surprise_limit is None:
        return errors
    scale = limit_scale(squared, rule.surprise_limit)[..., None]
    return {name: error * scale for name, error in errors.items()}


def slopes(rule: Rule, loss: Tensor, of: dict[str, Tensor], *, graph: bool) -> dict[str, Tensor]:
    """d loss / d each of what belongs to the weights by name; `graph`: they can be differentiated again.

    Raises `ValueError` where the loss does not depend on one.
    """
    found: Sequence[Tensor | None] = [None] * len(of)
    if loss.requires_grad:
        compiled = torch.compiler.is_compiling()  # zeros instead of None: it asks no questions
        found = torch.autograd.grad(
            loss.sum(), list(of.values()), create_graph=graph, allow_unused=True, materialize_grads=compiled
        )
    kept = {name: slope for name, slope in zip(of, found, strict=True) if slope is not None}
    check_cut_off(rule, of, kept)
    return kept


def check_twice(rule: Rule, name: str, used: Collection[str]) -> None:
    """Raise `ValueError` when a memory uses a weight again."""
    if name in used:
        raise ValueError(f"rule {rule.name!r}: its memory uses the weight {name!r} twice; each is used once.")


def check_unused(rule: Rule, names: Collection[str], used: Collection[str]) -> None:
    """Raise `ValueError` when a memory leaves weights out."""
    unused = sorted(set(names) - set(used))
    if unused:
        raise ValueError(f"rule {rule.name!r}: its memory never uses the weights {unused}; each is used once.")


def check_cut_off(rule: Rule, names: Collection[str], reached: Collection[str]) -> None:
    """Raise `ValueError` when the loss does not depend on some weights."""
    cut_off = [name for name in names if name not in reached]
    if cut_off:
        raise ValueError(
            f"rule {rule.name!r}: its loss does not depend on the weights {cut_off}, so no write would change them. "
            "Look for .detach(), .data, no_grad or a result that is thrown away in its memory or objective."
        )


def _number(x: Tensor) -> Tensor:
    """The same without history; most often it has none."""
    return x.detach() if x.requires_grad else x


def limit_scale(squared_norm: Tensor, limit: float) -> Tensor:
    """min(1, limit / norm), with a derivative that is finite at norm 0."""
    return limit * squared_norm.clamp(min=limit**2).rsqrt()


def squared_surprise(inputs: dict[str, Tensor], errors: dict[str, Tensor]) -> Tensor:
    """The squared norm of each token's gradient, all weights together, `[N, S]`."""
    terms = [inputs[name].square().sum(-1) * errors[name].square().sum(-1) for name in inputs]
    return torch.stack(terms).sum(0)


def observe_block(watch: Watch | None, tape: Tape, size: int) -> None:
    """Tell the watch, if there is one, what the block's own tokens, the last `size` of the tape, met."""
    if watch is not None and tape.squared_surprise is not None:
        watch.append((tape.loss.detach()[:, -size:], tape.squared_surprise.detach()[:, -size:].sqrt()))


Watch = list[tuple[Tensor, Tensor]]
