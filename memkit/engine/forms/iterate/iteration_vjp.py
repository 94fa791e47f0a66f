"""The VJP of one fixed-point iteration: gradients of its inputs and errors `[N, L, ...]` -> of the errors it used.

The VJP is linear, so gradients may be summed first: `pull` sums them into `totals`; `finish` computes once, from the
sums, the gradients of carry, tokens and constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import limit_errors, squared_surprise
from memkit.engine.forms.iterate.iteration import MemoryGraph, Problem, Residuals
from memkit.engine.gradients.segments import GradientSums, replay_write_pass, write_pass_vjp
from memkit.engine.gradients.vjp import Read, accumulate, carry_vjp, read_vjp
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors

Leaves = tuple[Tokens, Weights]
"""Tokens and constants, the leaves of autograd's graph of the segments."""


class IterationVjp:
    """One iteration, replayed from its residuals.

    old: errors of the unknown that the iteration started from. grad_point: receives the gradients of the effect on
    gradient points.
    """

    def __init__(
        self,
        rule: Rule,
        problem: Problem,
        graph: MemoryGraph,
        residuals: Residuals,
        old: Weights,
        leaves: Leaves,
        grad_point: Weights,
    ) -> None:
        self.rule, self.problem, self.graph, self.grad_point = rule, problem, graph, grad_point
        tokens, constants = leaves
        self.tape = replay_write_pass(rule, tokens, constants, residuals.outputs, residuals.grad_inputs)
        self._reads, self._transposed_reads = self._replayed_reads(residuals, old)
        self._leaves = self.tape.leaves(tokens, constants)
        self.totals = GradientSums(self._leaves)
        self._grad_first_inputs: Weights = {}

    def _replayed_reads(self, residuals: Residuals, old: Weights) -> tuple[dict[str, Read], dict[str, Read]]:
        """Return the reads of the forward and of the backward pass, by name."""
        inputs: Weights = map_tensors(Tensor.detach, self.tape.forward.inputs)
        errors: Weights = map_tensors(Tensor.detach, self.tape.errors)
        output_layer = self.graph.output_layer
        used = old if output_layer is None else {**old, output_layer: errors[output_layer]}
        # Under a limit of gradient norms the backward pass, too, uses the limited errors of the iteration before.
        written = errors if self.rule.surprise_limit is None else used
        point, carry = self.problem.point, self.problem.carry
        reads, transposed_reads = {}, {}
        for name, x in inputs.items():
            reads[name] = Read(point, x, carry[name], x, used.get(name), residuals.reads[name])
        for name, kept in residuals.transposed_reads.items():
            a, r = (written[name], inputs[name]) if name in written else (errors[name], None)
            transposed_reads[name] = Read(point, errors[name], carry[name], a, r, kept)
        return reads, transposed_reads

    def pull(self, grad_inputs: Weights, grad_errors: Weights) -> Weights:
        """Return the gradients of `old`, from those of the iteration's inputs and errors; these are changed."""
        grad_old: Weights = {}
        if self.rule.surprise_limit is not None:
            grad_inputs, grad_errors = self._limit_vjp(grad_inputs, grad_errors)

        def grad_input_vjp(name: str, gradient: Tensor | None) -> Tensor | None:
            return self._error_vjp(name, gradient, grad_inputs, grad_errors, grad_old)

        def output_vjp(name: str, gradient: Tensor | None) -> Tensor | None:
            return self._output_vjp(name, gradient, grad_inputs, grad_old)

        sums = write_pass_vjp(self.tape, self._leaves, grad_input_vjp, output_vjp)
        for leaf in self._leaves:
            gradient = sums.get(leaf)
            if gradient is not None:
                self.totals.add(leaf, gradient)
        return grad_old

    def _limit_vjp(self, grad_inputs: Weights, grad_errors: Weights) -> tuple[Weights, Weights]:
        """Backward pass of the limit of gradient norms: gradients of inputs and errors before it."""
        a = {name: x.detach().requires_grad_() for name, x in self.tape.forward.inputs.items()}
        r = {name: x.detach().requires_grad_() for name, x in self.tape.errors.items()}
        with torch.enable_grad():
            limited_errors = limit_errors(self.rule, squared_surprise(a, r), r)
        sums = GradientSums([*a.values(), *r.values()])
        for name, gradient in grad_errors.items():
            sums.pull(limited_errors[name], gradient)
        for name, gradient in grad_inputs.items():
            sums.add(a[name], gradient)
        gradients = ({name: sums.get(x) for name, x in leaves.items()} for leaves in (a, r))
        inputs, errors = ({name: x for name, x in each.items() if x is not None} for each in gradients)
        return inputs, errors

    def _error_vjp(
        self, name: str, gradient: Tensor | None, grad_inputs: Weights, grad_errors: Weights, grad_old: Weights
    ) -> Tensor | None:
        """Return the whole gradient of a linear map's errors; `gradient` arrives from their product W^T."""
        if gradient is not None:
            read = self._transposed_reads[name]
            grad_written = grad_errors if self.rule.surprise_limit is None else grad_old
            grad_x = read_vjp(name, read, gradient, self.grad_point, grad_written, grad_inputs)
            accumulate(grad_errors, name, grad_x)
        grad_error = grad_errors.get(name)
        if grad_error is not None and name == self.graph.output_layer and self.problem.affine is not None:
            return self.problem.affine.solve_vjp(self._reads[name].masked_scores, grad_error)
        return grad_error

    def _output_vjp(self, name: str, gradient: Tensor | None, grad_inputs: Weights, grad_old: Weights) -> Tensor | None:
        """Return the whole gradient of a linear map's input, from that of its output; add that of the old errors."""
        read = self._reads[name]
        if name not in self.graph.depends_on_earlier:  # its input is made of tokens and constants: left to `finish`
            if name in grad_inputs:
                accumulate(self._grad_first_inputs, name, grad_inputs[name])
            if gradient is not None and read.r is not None and name != self.graph.output_layer:
                accumulate(grad_old, name, read.masked_scores.mT.bmm(gradient))
            return None
        if gradient is not None:
            # Solved errors pass on no gradient here: `solved_back` has included it.
            grad_r = None if name == self.graph.output_layer else grad_old
            accumulate(grad_inputs, name, read_vjp(name, read, gradient, self.grad_point, grad_inputs, grad_r))
        return grad_inputs.get(name)

    def finish(self, grad_carry: Weights) -> None:
        """Add the gradients of the carry to `grad_carry`, those of tokens and constants to `totals`."""
        for name, x in self.tape.forward.inputs.items():
            grad_input = self.totals.get(self.tape.grad_inputs[name]) if name in self.tape.grad_inputs else None
            if grad_input is not None:
                carry_vjp(name, self._transposed_reads[name], grad_input, grad_carry)
            gradient, read = self.totals.get(self.tape.forward.outputs[name]), self._reads[name]
            if gradient is not None:
                carry_vjp(name, read, gradient, grad_carry)
            if name in self.graph.depends_on_earlier:
                continue
            first = self._grad_first_inputs
            if gradient is not None:
                accumulate(first, name, read_vjp(name, read, gradient, self.grad_point, first, None))
            if name in first:
                self.totals.pull(x, first[name])
