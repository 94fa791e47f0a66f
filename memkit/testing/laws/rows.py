"""Laws of rules about independence: of rows, heads, masked tokens and packed documents."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.rule import Rule, Tokens
from memkit.state import State, Tree, fields, map_tensors
from memkit.testing.laws.runs import ALL, inputs_of, tokens_of, without_unfilled
from memkit.testing.results_and_gradients import agree, differentiate, stack
from memkit.testing.strategies import MaskKind, RuleProblem, documents, mixed, pick
from memkit.testing.tolerance import same, same_trees

GARBAGE = (float("nan"), float("inf"), -float("inf"), 1e30)
UNREAD_ID = -7
"""The document id of masked tokens; on a real token it is an error."""


@torch.no_grad()
def rows_apart(rule: Rule, problem: RuleProblem) -> None:
    """run(batch)[b] = run(batch[b]) for every row b: outputs and final state."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    run = {"form": problem.form, "block_size": problem.block_size}
    y, after = problem.engine.memorize(rule, *tokens, state, **run)
    for b in range(problem.batch):
        row = slice(b, b + 1)
        alone, after_alone = problem.engine.memorize(rule, *pick(tokens, row, ALL), state.select(row), **run)
        same(f"y of row {b}", y[row], alone)
        same_trees(f"state of row {b}", without_unfilled(after.select(row)), without_unfilled(after_alone))


@torch.no_grad()
def heads_apart(rule: Rule, problem: RuleProblem) -> None:
    """run(heads)[h] = run(heads[h]) for every head h: outputs and final state."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    run = {"form": problem.form, "block_size": problem.block_size}
    y, after = problem.engine.memorize(rule, *tokens, state, **run)
    for h in range(problem.heads):
        head = map_tensors(lambda x, h=h: x[:, :, h : h + 1], tokens)
        alone, after_alone = problem.engine.memorize(rule, *head, one_head(state, h), **run)
        same(f"y of head {h}", y[:, :, h : h + 1], alone)
        same_trees(f"state of head {h}", without_unfilled(one_head(after, h)), without_unfilled(after_alone))


def one_head(tree: Tree, head: int) -> Tree:
    """The state of one head: a slice of tensors `[B, H, ...]`; counts and masks stay."""
    if isinstance(tree, Tensor):
        return tree[:, head : head + 1] if tree.is_floating_point() else tree
    if isinstance(tree, State):
        return replace(tree, **{name: one_head(value, head) for name, value in fields(tree).items()})  # type: ignore[type-var]
    if isinstance(tree, dict):
        return {name: one_head(value, head) for name, value in tree.items()}
    return tuple(one_head(value, head) for value in tree) if isinstance(tree, tuple) else tree


def masked_token(rule: Rule, problem: RuleProblem) -> None:
    """run(tokens, mask) = run(tokens without the masked ones), even if those are NaN: outputs, state, gradients."""
    _apart_is_together(rule, problem, "anywhere", None)


def left_padding(rule: Rule, problem: RuleProblem) -> None:
    """run(left-padded rows) = run(each row without padding): outputs, state and gradients."""
    _apart_is_together(rule, problem, "left", None)


def documents_apart(rule: Rule, problem: RuleProblem) -> None:
    """run(packed documents) = run(each document alone, from the initial state), also when cut into two calls.

    Compared: outputs, state and gradients, with masked tokens. A row's first document continues the given state.
    """
    ids = problem.segment_ids().masked_fill(~problem.mask(), UNREAD_ID)
    _apart_is_together(rule, problem, "anywhere", ids)


def _apart_is_together(rule: Rule, problem: RuleProblem, kind: MaskKind, ids: Tensor | None) -> None:
    mask = problem.mask(kind)
    tokens = problem.tokens_for(rule)
    tokens = mixed(mask, tokens, _garbage(tokens))
    one_document = torch.zeros(problem.batch, problem.tokens, dtype=torch.long)
    parts = [documents(*row) for row in zip(one_document if ids is None else ids, mask, strict=True)]
    cut = 0 if ids is None else problem.cuts[0]

    def together(inputs: dict[str, Tree]) -> dict[str, Tree]:
        tokens, state, outputs = tokens_of(inputs), inputs["state"], []
        for part in (slice(0, cut), slice(cut, problem.tokens)):
            here = {"mask": mask[:, part], "segment_ids": None if ids is None else ids[:, part]}
            y, state = problem.engine.memorize(
                rule, *pick(tokens, ALL, part), state, **here, form=problem.form, block_size=problem.block_size
            )
            outputs.append(y)
        return {"y": torch.cat(outputs, 1), "state": _without_segment(state)}

    def apart(inputs: dict[str, Tree]) -> dict[str, Tree]:
        rows = [
            _row_apart(rule, problem, tokens_of(inputs), inputs["state"], b, parts[b]) for b in range(problem.batch)
        ]
        outputs, states = zip(*rows, strict=True)
        return {"y": torch.cat(outputs), "state": _without_segment(stack(states))}

    inputs = inputs_of(tokens, problem.state_for(rule))
    agree(differentiate(together, inputs), differentiate(apart, inputs))


def _row_apart(
    rule: Rule, problem: RuleProblem, tokens: Tokens, state: MemoryState, b: int, parts: list[Tensor]
) -> tuple[Tensor, MemoryState]:
    """Row b, one call per document, without the masked tokens."""
    row, y = slice(b, b + 1), torch.zeros_like(tokens.v[b : b + 1, ..., : problem.value_dim])
    state = state.select(row)
    for number, part in enumerate(parts):
        if number:
            state = state.reset(torch.ones(1, dtype=torch.bool), rule)
        found, state = problem.engine.memorize(rule, *pick(tokens, row, part), state, form=problem.form)
        y = y.index_copy(1, part, found)
    return y, state


def _without_segment(state: MemoryState) -> dict[str, Tree]:
    """A state without the document id, known to packed calls only."""
    return {name: value for name, value in fields(without_unfilled(state)).items() if name != "segment"}


def _garbage(tokens: Tokens) -> Tokens:
    """Tokens of the same shapes, full of NaN, infinities and huge numbers."""

    def spoil(x: Tensor) -> Tensor:
        kinds = torch.tensor(GARBAGE, dtype=x.dtype).repeat(x.numel() // len(GARBAGE) + 1)
        return kinds[: x.numel()].view_as(x)

    return map_tensors(spoil, tokens)
