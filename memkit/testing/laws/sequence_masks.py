"""Laws of mixers and language models about masks and documents, and the comparisons that sequence laws share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memkit.state import Tree
from memkit.testing.results_and_gradients import ResultsAndGradients, agree, functional, gradients
from memkit.testing.sequences import SequenceProblem
from memkit.testing.strategies import MaskKind, documents

NEXT = 3
"""Tokens to run after the ones in question, to compare states by their outputs."""
UNREAD_DOCUMENT = -7
"""The document id of masked tokens."""


def masked_token(component: Any, problem: SequenceProblem) -> None:
    """run(tokens, mask) = run(tokens without the masked ones), even if those are NaN.

    Compared: outputs, outputs of the next tokens, gradients.
    """
    _apart_is_together(component, problem, "anywhere", None)


def left_padding(component: Any, problem: SequenceProblem) -> None:
    """run(left-padded rows) = run(each row without padding).

    Compared: outputs, outputs of the next tokens, gradients.
    """
    _apart_is_together(component, problem, "left", None)


def documents_apart(component: Any, problem: SequenceProblem) -> None:
    """run(packed documents) = run(each document alone, from a fresh state), also when cut into two calls.

    Compared: outputs, outputs of the next tokens and gradients, with masked tokens. A row's first document continues
    the given state.
    """
    ids = problem.segment_ids().masked_fill(~problem.mask(), UNREAD_DOCUMENT)
    _apart_is_together(component, problem, "anywhere", ids)


def next_outputs(component: Any, problem: SequenceProblem, state: Any, rows: slice = slice(None)) -> Tensor:
    """Outputs of the next tokens."""
    return component(problem.inputs(component, NEXT, stream=8)[rows], state)[0]


def differentiate_component(
    component: nn.Module, x: Tensor, run: Callable[[Tensor], dict[str, Tree]]
) -> ResultsAndGradients:
    """Run, and differentiate the results in the inputs, unless they are ids, and in all parameters."""
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    results = run(x)
    leaves = {"x": x} if x.requires_grad else {}
    return ResultsAndGradients(
        results, gradients(functional(results), {**leaves, **dict(component.named_parameters())})
    )


def _apart_is_together(component: Any, problem: SequenceProblem, kind: MaskKind, ids: Tensor | None) -> None:
    mask = problem.mask(kind)
    x = problem.spoiled(problem.inputs(component), mask)
    one_document = torch.zeros(problem.batch, problem.tokens, dtype=torch.long)
    parts = [documents(*row) for row in zip(one_document if ids is None else ids, mask, strict=True)]
    cut = 0 if ids is None else problem.cuts[0]

    def together(x: Tensor) -> dict[str, Tree]:
        state, outputs = problem.state_for(component), []
        for part in (slice(0, cut), slice(cut, problem.tokens)):
            here = {"mask": mask[:, part], "segment_ids": None if ids is None else ids[:, part]}
            y, state = component(x[:, part], state, **here, write=problem.write)
            outputs.append(y)
        return {"y": torch.cat(outputs, 1), "y of the next tokens": next_outputs(component, problem, state)}

    def apart(x: Tensor) -> dict[str, Tree]:
        state = problem.state_for(component)
        rows = [_row_apart(component, problem, x, state, b, part) for b, part in enumerate(parts)]
        y, later = (torch.cat(column) for column in zip(*rows, strict=True))
        return {"y": y, "y of the next tokens": later}

    agree(differentiate_component(component, x, together), differentiate_component(component, x, apart))


def _row_apart(
    component: Any, problem: SequenceProblem, x: Tensor, state: Any, b: int, parts: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Row b, one call per document, without the masked tokens."""
    row = slice(b, b + 1)
    x, state = x[row], state.select(row)
    later = problem.inputs(component, NEXT, stream=8)[row]
    outputs = []
    for number, part in enumerate(parts):
        if number:
            state = component.reset(state, torch.ones(1, dtype=torch.bool))
        y, state = component(x[:, part], state, write=problem.write)
        outputs.append(y)
    later, _ = component(later, state)
    y = later.new_zeros(1, problem.tokens, later.shape[-1])
    return (y.index_copy(1, torch.cat(parts), torch.cat(outputs, 1)) if parts else y), later
