"""The expand form: every token's step is formed, for optimizers with a nonlinear `direction` (Muon).

The sum S_t before the direction T is still linear in the gradients, and these are all taken at the mini-batch's
weights. So the S_t of a block are one product, the T(S_t) one batch, and the weights after each token, linear in the
steps, one more product (ATLAS eq. 39-41):

    S = P_S S_0 + C_S G,    M = P_M M_0 + C_M T(S),    G_s = a_s^T r_s

Both pairs of coefficients are read off the update as in the dual form. It holds a matrix for each token of a
block, `[N, L, in, out]`, which the other forms do not; for the backward pass they are made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memkit.engine.core import coefficients
from memkit.engine.core.block import gradient_weights, parts, stack, unstack
from memkit.engine.core.coefficients import Coefficients
from memkit.engine.core.obstacles import not_linear, online, per_key_channel
from memkit.engine.core.rows import Weights, cut
from memkit.engine.core.surprise import Observed
from memkit.engine.core.tape import Tape, record
from memkit.engine.core.unrolled import unroll_head_blocks
from memkit.engine.core.window import Window, as_window, band, join, latest, spread
from memkit.engine.form import Call, Form, Result
from memkit.engine.forms.blocks import layout
from memkit.rule import Gates, Optimizer, Retention, Rule, Slots, Tokens, at_weights, identity


def expand(call: Call) -> Result:
    """Run the call block by block."""
    rule, rows, outputs, seen = call.rule, call.rows, [call.tokens.v[:, :0]], []
    carry, anchor, window = stack(rows), dict(rows.anchor), rows.window
    gathers, keeps = (
        unroll_head_blocks(coefficients.probe(part, call.tokens, call.valid), call.lengths)
        for part in (_gathering(rule), _keeping(rule))
    )
    for block, here, gather, keep in zip(call.blocks, cut(call.tokens, call.lengths), gathers, keeps, strict=True):
        valid = None if call.valid is None else call.valid[:, block.start : block.stop]
        anchor = gradient_weights(rule, block, parts(carry, 1 + rule.slots), anchor, here.gates)
        sources = here if window is None else join(window, as_window(rule, here, valid))
        tape = record(rule, sources.k, sources.v, sources.gates, anchor, rows.constants, surprise=call.observe)
        seen.append(tape.observed(here.k.shape[1]) if call.observe else None)
        if isinstance(sources, Window):
            gather = spread(gather, band(rule, sources, here.k.shape[1]))
            window = latest(sources, rule.window - 1)
        y, carry = _forgotten(_write_and_read, rule, gather, keep, carry, tape, here, rows.constants)
        outputs.append(y)
    weights, slots = unstack(parts(carry, 1 + rule.slots))
    anchor = {name: anchor[name] for name in rows.anchor}
    after = replace(rows, weights=weights, slots=slots, anchor=anchor, window=window)
    return Result(torch.cat(outputs, 1), after, Observed.join(seen))


def _gathering(rule: Rule) -> Rule:
    """A rule with the optimizer's sum as its weight: the step before `direction`.

    Where gradients are taken is no concern of either part; the gates of both may be needed to say it.
    """
    optimizer = replace(rule.optimizer, direction=None)
    return replace(rule, optimizer=optimizer, retention=Retention(name="the step", keep=_the_step), point=at_weights)


def _the_step(weight: Tensor, step: Tensor, slots: Slots, gates: Gates) -> Tensor:
    return step


def _keeping(rule: Rule) -> Rule:
    """A rule with the directed steps as its gradients."""
    return replace(rule, optimizer=Optimizer(name="as it comes", step=_as_it_comes), point=at_weights)


def _as_it_comes(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    return grad, ()


def _forgotten(function: Callable[..., tuple[Tensor, Weights]], *given: Any) -> tuple[Tensor, Weights]:
    """Call a function, and call it again in the backward pass instead of keeping its intermediate results.

    A direction leaves a dozen matrices per token behind; only one block's need be in memory.
    """
    if not torch.is_grad_enabled():
        return function(*given)
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]


def _write_and_read(
    rule: Rule,
    gather: Coefficients,
    keep: Coefficients,
    carry: Weights,
    tape: Tape,
    here: Tokens,
    constants: dict[str, Tensor],
) -> tuple[Tensor, Weights]:
    """Answers to the block's queries, and (weight, slots) after it."""
    seen, carry = _write(rule, gather, keep, carry, tape, here.gates)
    return rule.memory.forward(lambda name, x: _each(x, seen[name]), here.q, constants), carry


def _write(
    rule: Rule, gather: Coefficients, keep: Coefficients, carry: Weights, tape: Tape, gates: Gates
) -> tuple[Weights, Weights]:
    """The weights `[N, L, in, out]` that each token's query sees, and (weight, slots) after the block."""
    n = rule.optimizer_slots
    at_steps = {gate.name: gates[gate.name][..., None, None] for gate in rule.optimizer.gates}
    turn = rule.optimizer.direction
    if turn is None:
        raise RuntimeError("only an optimizer with a direction has steps to form.")
    seen, after = {}, {}
    for name, x in carry.items():
        a, r = tape.inputs[name], tape.errors[name]
        shape = (a.shape[-1], r.shape[-1])
        grads = (a.unsqueeze(-1) * r.unsqueeze(-2)).flatten(2)  # [N, S, in * out]
        held = x.unflatten(1, (-1, shape[0])).flatten(2)  # [N, weight and slots, in * out]
        gathered = torch.baddbmm(gather.weight.carry @ held[:, : n + 1], gather.weight.write, grads)
        steps = turn(gathered.unflatten(-1, shape), at_steps).flatten(2)
        kept = torch.cat([held[:, :1], held[:, n + 1 :]], 1)
        weights = torch.baddbmm(keep.weight.carry @ kept, keep.weight.write, steps)
        slots = torch.baddbmm(gather.last_carry @ held[:, : n + 1], gather.last_write.mT, grads)[:, 1:]
        before = torch.cat([held[:, :1], weights[:, :-1]], 1)
        seen[name] = (weights if rule.read == "after" else before).unflatten(-1, shape)
        after[name] = torch.cat([weights[:, -1:], slots, held[:, n + 1 :]], 1).unflatten(-1, shape).flatten(1, 2)
    return seen, after


def _each(x: Tensor, weights: Tensor) -> Tensor:
    """Each token's x `[N, L, in]` times its own weight `[N, L, in, out]`."""
    return (x.unsqueeze(-2) @ weights).squeeze(-2)


def not_expandable(rule: Rule) -> list[str]:
    """Reasons against a form that makes every token's step as a whole matrix."""
    if rule.optimizer.direction is None:
        return ["its steps need not be formed"]
    found = not_linear(replace(rule, optimizer=replace(rule.optimizer, direction=None)))
    if rule.effective is not identity:
        found.append("its effective weights are not linear in the raw ones")
    return found + per_key_channel(rule)


def _why(rule: Rule) -> str:
    turned = f"its optimizer {rule.optimizer.name!r} turns every token's step, so each is a whole matrix"
    if not rule.sees_weights:
        return f"expand: {turned}; its gradient does not see the weights, so blocks of any size run at once."
    if online(rule):
        return (
            f"expand: one token at a time, because mini_batch=1 updates the weights that the next gradient sees, and "
            f"{turned}. A larger mini_batch is parallel, and another rule; so is update_every=n, with one step every "
            "n tokens."
        )
    return (
        f"expand: every mini-batch of {rule.mini_batch} tokens runs at once; {turned}, which costs time and memory. "
        "With mini_batch=1 and update_every=n there is one step every n tokens: another rule."
    )


EXPAND = Form("expand", not_expandable, layout, expand, _why)
