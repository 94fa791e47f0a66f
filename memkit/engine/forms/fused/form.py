"""The fused form: the blocks of `dual`, each run of equal ones as a single node with a backward pass of its own.

It computes what `dual` says, faster, and is what `compile_blocks` and `products=` are for. Where blocks do more (Omega
windows, effective weights, gradient points of their own, limits, gates per channel), where torch traces or exports, and
where losses are observed, `dual` itself runs.
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
from memkit.engine.forms.fused.forward import Given, Run
from memkit.engine.forms.fused.node import run_blocks
from memkit.engine.forms.fused.operator import POSSIBLE
from memkit.engine.gradients.products import outputs_of, stack_narrow, upright_parts
from memkit.rule import Rule, at_weights, identity
from memkit.state import map_tensors


def fused(call: Call) -> Result:
    """Run the call, neighboring blocks of one length at a time."""
    if call.observe or not possible_now():
        return dual(call)
    rule, rows, products = call.rule, call.rows, call.run.products
    outputs, carry, anchor, first = [call.tokens.v[:, :0]], stack_narrow(rows), rows.anchor, 0
    steps = coefficients.probe(rule, call.tokens, call.valid)
    gates = {gate.name: call.tokens.gates[gate.name] for gate in rule.objective.gates}
    tokens, constants = cast((call.tokens._replace(gates=gates), rows.constants), products)
    runs = list(equal_blocks(steps, call.lengths))
    for (count, some), here in zip(runs, cut(tokens, [n * some.write.shape[2] for n, some in runs]), strict=True):
        own = prepared(rule, coefficients.unroll(some), products)
        here = map_tensors(lambda x, count=count: x.unflatten(1, (count, x.shape[1] // count)), here)
        begins = tuple(block.begins for block in call.blocks[first : first + count])
        program = preparing() if count > 1 else as_written  # a lone block is of any length: not worth compiling
        y, carry, anchor = run_blocks(Run(rule, begins, program), Given(here, own, carry, anchor, constants))
        outputs.append(y.flatten(1, 2))
        first += count
    weights, slots = unstack(upright_parts(carry, outputs_of(rows), 1 + rule.slots))
    anchor = {name: anchor[name] for name in rows.anchor}
    return Result(torch.cat(outputs, 1), replace(rows, weights=weights, slots=slots, anchor=anchor))


def possible_now() -> bool:
    """Whether blocks can be one node here: torch does not trace, or it makes the node one operator.

    An exported program runs where memkit is not installed, so it holds no such operator.
    """
    tracing = torch.compiler.is_compiling()
    return not tracing or (as_operator() and not torch.compiler.is_exporting())


def as_operator() -> bool:
    """Whether a run of blocks is one operator of a graph that torch is making."""
    return backend_now() is not None and POSSIBLE


def compiles_blocks(rule: Rule) -> bool:
    """Whether torch compiles the blocks of a rule now."""
    return not not_fused(rule) and possible_now() and preparing() is not as_written


def not_fused(rule: Rule) -> list[str]:
    """Reasons against a node whose backward pass is written by hand."""
    found = not_linear(rule)
    if rule.point is not at_weights:
        found.append("its gradients are taken at a point of its own")
    if rule.effective is not identity:
        found.append("its effective weights are others than it keeps")
    if rule.window > 1:
        found.append(f"each write uses {rule.window} gradients")
    channels = [gate.name for gate in rule.weight_gates if gate.per not in ("head", "pair")]
    if channels:
        found.append(f"its gates {channels} are per channel")
    return found if rule.surprise_limit is None else [*found, "it has a surprise_limit"]


def _suits(rule: Rule) -> bool:
    return in_parallel(rule) and possible_now()


FUSED = Form("fused", not_fused, layout, fused, lambda rule: f"fused: {why_blocks(rule)}", _suits)
