"""A form: one way to run any rule that it fits. All forms that fit a rule give the same numbers.

A form is a file with a `Form` in it, a name in `options.FormName`, and a place in `plan.FORMS`, faster before slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from memkit.engine.core.rows import Rows
from memkit.engine.core.surprise import Observed
from memkit.engine.options import Run
from memkit.layout import Block, Layout
from memkit.rule import Rule, Tokens


class Place(NamedTuple):
    """Position of rows: mask `[N, T]` or None, offset `[N]` and phase as in a state, and the number of tokens.

    The fields are the arguments of `layout.lay_out`, in its order.
    """

    mask: Tensor | None
    offset: Tensor
    phase: int | None
    tokens: int


class Call(NamedTuple):
    """Tokens of one document per row, where the form's layout put them.

    tokens: q, k, v `[N, L, ...]`, gates `[N, L, ...]`. valid `[N, L]`: slots that hold a token, None for all.
    blocks: parts of the L slots, in order. offset `[N]`: valid tokens of each row so far, modulo the rule's period.
    observe: whether loss and surprise are wanted.
    """

    rule: Rule
    tokens: Tokens
    rows: Rows
    blocks: list[Block]
    valid: Tensor | None
    offset: Tensor
    run: Run
    observe: bool = False

    @property
    def lengths(self) -> list[int]:
        """Slots of each block."""
        return [block.stop - block.start for block in self.blocks]


class Result(NamedTuple):
    """y `[N, L, V]`, the rows after the last token, and loss and surprise if they were asked for."""

    y: Tensor
    rows: Rows
    observed: Observed | None = None


def always(rule: Rule) -> bool:
    """Every rule."""
    return True


@dataclass(frozen=True, eq=False)
class Form:
    """A form, as `plan` knows it.

    obstacles(rule): reasons why the form does not fit the rule; empty if it does.
    layout(rule, place, block_size): which tokens run at once.
    run(call): the result, for any rule without obstacles.
    why(rule): the sentence of `explain`, for rules that the form runs in parallel; None: it never does.
    suits(rule): whether `auto` may take the form, of a rule without obstacles: it is fast here and now.
    """

    name: str
    obstacles: Callable[[Rule], list[str]]
    layout: Callable[[Rule, Place, int], Layout]
    run: Callable[[Call], Result]
    why: Callable[[Rule], str] | None = None
    suits: Callable[[Rule], bool] = always
