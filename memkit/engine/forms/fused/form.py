"""The fused form: neighboring blocks of one length as one autograd node, with a backward pass written by hand.

Tokens q, k, v `[N, L, ...]`, gates `[N, L]` -> y `[N, L, V]` and the next rows. It computes what `dual` does, faster;
`compile_blocks` and `products=` apply to it. `dual` itself runs if losses are observed, and if torch traces or exports
the caller. Rules with more steps per block (Omega windows, effective weights, own gradient points, limits, gates per
channel) have no fused form.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from memkit.engine.core import coefficients
from memkit.engine.core.block import unstack
from memkit.engine.core.obstacles import not_linear
from memkit.engine.core.rows import cut
from memkit.engine.core.unrolled import equal_blocks
from memkit.engine.form import Call, Form, Result
from memkit.engine.forms.blocks import cast, in_parallel, layout, why_blocks
from memkit.engine.forms.dual import dual, prepared
from memkit.engine.forms.fused.compile import as_written, backend_now, preparing
from memkit.engine.forms.fused.forward import BlockRun, Inputs
from memkit.engine.forms.fused.node import run_blocks
from memkit.engine.forms.fused.operator import POSSIBLE
from memkit.engine.gradients.products import outputs_of, stack_narrow, upright_parts
from memkit.rule import Rule, at_weights, identity
from memkit.state import map_tensors


def fused(call: Call) -> Result:
    """Run the call, one run of equal blocks after the other."""
    if call.observe or not possible_now():
        return dual(call)
    rule, rows, products = call.rule, call.rows, call.run.products
    outputs, carry, anchor, first = [call.tokens.v[:, :0]], stack_narrow(rows), rows.anchor, 0
    steps = coefficients.probe(rule, call.tokens, call.valid)
    gates = {gate.name: call.tokens.gates[gate.name] for gate in rule.objective.gates}
    tokens, constants = cast((call.tokens._replace(gates=gates), rows.constants), products)
    runs = list(equal_blocks(steps, call.lengths))
    lengths = [count * run_steps.write.shape[2] for count, run_steps in runs]
    for (count, run_steps), part in zip(runs, cut(tokens, lengths), strict=True):
        part = map_tensors(lambda x, count=count: x.unflatten(1, (count, x.shape[1] // count)), part)
        unrolled = prepared(rule, coefficients.unroll(run_steps), products)
        begins = tuple(block.begins for block in call.blocks[first : first + count])
        prepare = preparing() if count > 1 else as_written  # lone blocks have many lengths: too many programs
        run = BlockRun(rule, begins, prepare)
        y, carry, anchor = run_blocks(run, Inputs(part, unrolled, carry, anchor, constants))
        outputs.append(y.flatten(1, 2))
        first += count
    weights, slots = unstack(upright_parts(carry, outputs_of(rows), 1 + rule.slots))
    anchor = {name: anchor[name] for name in rows.anchor}
    return Result(torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots, anchor=anchor))


def possible_now() -> bool:
    """Return whether blocks can be one node now: torch does not trace the caller, or accepts them as an operator.

    An exported program must run without memkit, so it holds no operator of memkit.
    """
    tracing = torch.compiler.is_compiling()
    return not tracing or (as_operator() and not torch.compiler.is_exporting())


def as_operator() -> bool:
    """Return whether a traced run of blocks becomes one operator."""
    return backend_now() is not None and POSSIBLE


def not_fused(rule: Rule) -> list[str]:
    """Return reasons against the hand-written backward pass."""
    reasons = not_linear(rule)
    if rule.point is not at_weights:
        reasons.append("its gradients are taken at a point of its own")
    if rule.effective is not identity:
        reasons.append("its effective weights are others than it keeps")
    if rule.window > 1:
        reasons.append(f"each write uses {rule.window} gradients")
    channels = [gate.name for gate in rule.weight_gates if gate.per not in ("head", "pair")]
    if channels:
        reasons.append(f"its gates {channels} are per channel")
    return reasons if rule.surprise_limit is None else [*reasons, "it has a surprise_limit"]


def _suits(rule: Rule) -> bool:
    return in_parallel(rule) and possible_now()


FUSED = Form("fused", not_fused, layout, fused, lambda rule: f"fused: {why_blocks(rule)}", _suits)
