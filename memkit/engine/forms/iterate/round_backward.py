"""The way back through one round: from slopes of its inputs and errors to those of the errors that it heard.

It is linear, so that what is added up on the way back of one vector after the other is that of their sum: `pull` adds
to `totals`, and `finish` makes of those, once, what needs no round: the slopes of the carry, of tokens and constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memkit.engine.core.rows import Weights
from memkit.engine.core.surprise import limit_errors, squared_surprise
from memkit.engine.forms.iterate.round import Kept, Start, Wiring
from memkit.engine.gradients.adjoint import Read, add, ask_back, carry_back
from memkit.engine.gradients.pieces import Sums, written_again
from memkit.rule import Rule, Tokens
from memkit.state import map_tensors

Leaves = tuple[Tokens, Weights]
"""Tokens and constants, where autograd begins."""


class RoundBack:
    """One round and its way back.

    kept: what its products found. heard: the errors of the unknown that its linears heard, and whose slopes are asked
    for. leaves: of the graph that lies between products. of_point: where the slopes of effects are added.
    """

    def __init__(
        self, rule: Rule, start: Start, wired: Wiring, kept: Kept, heard: Weights, leaves: Leaves, of_point: Weights
    ) -> None:
        self.rule, self.start, self.wired, self.of_point = rule, start, wired, of_point
        here, constants = leaves
        self.writing = written_again(rule, here, constants, kept.outputs, kept.backs)
        inputs: Weights = map_tensors(Tensor.detach, self.writing.forward.inputs)
        errors: Weights = map_tensors(Tensor.detach, self.writing.errors)
        heard = heard if wired.solved is None else {**heard, wired.solved: errors[wired.solved]}
        # Under a limit of gradient norms what errors hear of on the way back is what the round before left of them.
        written = errors if rule.surprise_limit is None else heard
        seen, carry = start.seen, start.carry
        self._forth, self._back = {}, {}
        for name, x in inputs.items():
            self._forth[name] = Read(seen, x, carry[name], x, heard.get(name), kept.asked[name])
        for name, asked in kept.asked_back.items():
            a, r = (written[name], inputs[name]) if name in written else (errors[name], None)
            self._back[name] = Read(seen, errors[name], carry[name], a, r, asked)
        given_leaves = [here.k, here.v, *here.gates.values(), *constants.values()]
        self._leaves = [*self.writing.forward.outputs.values(), *self.writing.backs.values(), *given_leaves]
        self.totals = Sums(self._leaves)
        self._of_first: Weights = {}

    def pull(self, of_inputs: Weights, of_errors: Weights) -> Weights:
        """The slopes of what was heard from those of this round's inputs and errors, which may be added to."""
        of_old: Weights = {}
        if self.rule.surprise_limit is not None:
            of_inputs, of_errors = self._unlimited(of_inputs, of_errors)
        sums = Sums(self._leaves)
        for name in self.writing.forward.outputs:
            self._error_back(name, sums, of_inputs, of_errors, of_old)
        for name in reversed(self.writing.forward.outputs):
            self._output_back(name, sums, of_inputs, of_old)
        for leaf in self._leaves:
            arrived = sums.of(leaf)
            if arrived is not None:
                self.totals.add(leaf, arrived)
        return of_old

    def _unlimited(self, of_inputs: Weights, of_errors: Weights) -> tuple[Weights, Weights]:
        """Back through the limit of gradient norms."""
        a = {name: x.detach().requires_grad_() for name, x in self.writing.forward.inputs.items()}
        r = {name: x.detach().requires_grad_() for name, x in self.writing.errors.items()}
        with torch.enable_grad():
            found = limit_errors(self.rule, squared_surprise(a, r), r)
        sums = Sums([*a.values(), *r.values()])
        for name, slope in of_errors.items():
            sums.pull(found[name], slope)
        for name, slope in of_inputs.items():
            sums.add(a[name], slope)
        arrived = ({name: sums.of(x) for name, x in leaves.items()} for leaves in (a, r))
        inputs, errors = ({name: x for name, x in some.items() if x is not None} for some in arrived)
        return inputs, errors

    def _error_back(self, name: str, sums: Sums, of_inputs: Weights, of_errors: Weights, of_old: Weights) -> None:
        """From a linear's errors to what they were made of, among it what they heard of the linear's own writes."""
        back = self.writing.backs.get(name)
        arrived = None if back is None else sums.of(back)
        if arrived is not None:
            read = self._back[name]
            of_written = of_errors if self.rule.surprise_limit is None else of_old
            add(of_errors, name, ask_back(name, read, arrived, self.of_point, of_written, of_inputs))
        slope = of_errors.get(name)
        if slope is None:
            return
        if name == self.wired.solved and self.start.affine is not None:
            read = self._forth[name]
            slope = self.start.affine.solved_back(read.asked.scores * read.effect.write, slope)
        sums.pull(self.writing.errors[name], slope)

    def _output_back(self, name: str, sums: Sums, of_inputs: Weights, of_old: Weights) -> None:
        """From what a linear said to its input and to the errors that it heard."""
        arrived, read = sums.of(self.writing.forward.outputs[name]), self._forth[name]
        if name not in self.wired.behind:  # only tokens and constants come before: `finish` goes there, once
            if name in of_inputs:
                add(self._of_first, name, of_inputs[name])
            if arrived is not None and read.r is not None and name != self.wired.solved:
                add(of_old, name, (read.asked.scores * read.effect.write).mT.bmm(arrived))
            return
        if arrived is not None:
            # The slope of solved errors is in that of what they were solved from.
            of_r = None if name == self.wired.solved else of_old
            add(of_inputs, name, ask_back(name, read, arrived, self.of_point, of_inputs, of_r))
        if name in of_inputs:
            sums.pull(self.writing.forward.inputs[name], of_inputs[name])

    def finish(self, of_carry: Weights) -> None:
        """Add to the slopes of the carry, and to `totals` those of tokens and constants."""
        for name, x in self.writing.forward.inputs.items():
            back = self.totals.of(self.writing.backs[name]) if name in self.writing.backs else None
            if back is not None:
                carry_back(name, self._back[name], back, of_carry)
            arrived = self.totals.of(self.writing.forward.outputs[name])
            if arrived is not None:
                carry_back(name, self._forth[name], arrived, of_carry)
            if name in self.wired.behind:
                continue
            if arrived is not None:
                read = self._forth[name]
                add(self._of_first, name, ask_back(name, read, arrived, self.of_point, self._of_first, None))
            if name in self._of_first:
                self.totals.pull(x, self._of_first[name])
