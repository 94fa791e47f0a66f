"""Laws of everything that maps a sequence to a sequence: mixers, and language models through their ids.

States are compared by what comes of them (the outputs of the next tokens) where their representation may
rightly differ, as caches of rows with different numbers of tokens do, and by their tensors elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memkit.engine import MemoryState
from memkit.files import load_state, save_state
from memkit.state import State, Tree, fields, map_tensors
from memkit.testing.close import Mismatch, identical, named, same, same_trees, unmoved
from memkit.testing.outcome import Outcome, agree, gradients
from memkit.testing.sequences import SequenceProblem, copied_to
from memkit.testing.strategies import MaskKind, documents

NEXT = 3
"""Tokens that are run after the ones in question, to see whether a state is what it should be."""
LEARNING = 24
"""Tokens after which every parameter must have mattered."""
UNREAD_DOCUMENT = -7


def split_anywhere(component: Any, problem: SequenceProblem) -> None:
    """run(a ++ b, state) = run(b, run(a, state)), a or b empty too: outputs, state and every gradient."""
    component = problem.enlarged(component)
    places = [0, *problem.cuts, problem.tokens]

    def run(x: Tensor, starts: list[int]) -> dict[str, Tree]:
        state, outputs = problem.state_for(component), []
        for start, stop in zip(starts, starts[1:], strict=False):
            y, state = component(x[:, start:stop], state, write=problem.write)
            outputs.append(y)
        return {"y": torch.cat(outputs, 1), "state": state, "y of the next tokens": _next(component, problem, state)}

    x = problem.inputs(component)
    agree(
        _outcome(component, x, lambda x: run(x, places)),
        _outcome(component, x, lambda x: run(x, [0, problem.tokens])),
    )


@torch.no_grad()
def decode_is_prefill(component: Any, problem: SequenceProblem) -> None:
    """Token by token, in one call each, gives what one call for all gives: outputs and state."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, final = component(x, state, write=problem.write)
    steps = []
    for t in range(problem.tokens):
        step, state = component(x[:, t : t + 1], state, write=problem.write)
        steps.append(step)
    same("y", torch.cat(steps, 1), y)
    same_trees("state", state, final)


def empty_call(component: Any, problem: SequenceProblem) -> None:
    """T = 0 is the identity, with a mask and documents too: no outputs, and the state it was given."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, _ = component(x, state)
    nothing = problem.mask(length=0)
    for options in ({}, {"mask": nothing}, {"segment_ids": nothing.long()}, {"write": False}):
        none, after = component(x[:, :0], state, **options)
        same(f"y with {sorted(options)}", none, y[:, :0])
        same_trees(f"state with {sorted(options)}", after, state)


@torch.no_grad()
def causality(component: Any, problem: SequenceProblem) -> None:
    """Outputs before token j do not change when token j and all after it do: exactly, or by 1e-12 of the largest."""
    component = problem.enlarged(component)
    j, x, others = max(1, problem.cuts[1]), problem.inputs(component), problem.inputs(component, stream=7)
    state = problem.state_for(component)
    y, _ = component(x, state, write=problem.write)
    changed, _ = component(torch.cat([x[:, :j], others[:, j:]], 1), state, write=problem.write)
    unmoved(f"y of tokens before {j}", changed[:, :j], y[:, :j], float(y.abs().max()))


@torch.no_grad()
def rows_apart(component: Any, problem: SequenceProblem) -> None:
    """A row of a batch gives what it gives alone: outputs, and those of the next tokens."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, after = component(x, state, write=problem.write)
    later = _next(component, problem, after)
    for b in range(problem.batch):
        row = slice(b, b + 1)
        alone, after = component(x[row], state.select(row), write=problem.write)
        same(f"y of row {b}", y[row], alone)
        same(f"y of the next tokens of row {b}", later[row], _next(component, problem, after, row))


@torch.no_grad()
def state_is_a_value(component: Any, problem: SequenceProblem) -> None:
    """A call leaves inputs, state and module as they were, to the last bit; so it gives the same answer again."""
    x, state = problem.inputs(component), problem.state_for(component)
    kept_x, kept_state, kept_module = map_tensors(torch.clone, (x, state, dict(component.state_dict())))
    y, after = component(x, state, write=problem.write)
    kept_y, kept_after = map_tensors(torch.clone, (y, after))
    identical("inputs", x, kept_x)
    identical("state given", state, kept_state)
    component(x, after, write=problem.write)
    identical("y of an earlier call", y, kept_y)
    identical("state of an earlier call", after, kept_after)
    identical("module", dict(component.state_dict()), kept_module)
    again, after_again = component(x, state, write=problem.write)
    identical("y of the same call", again, y)
    identical("state of the same call", after_again, after)


def masked_token(component: Any, problem: SequenceProblem) -> None:
    """A masked token never was, NaN included: everything is as without it, what comes next and gradients too."""
    _apart_is_together(component, problem, "anywhere", None)


def left_padding(component: Any, problem: SequenceProblem) -> None:
    """A left-padded batch gives what its rows give unpadded: outputs, what comes next, gradients."""
    _apart_is_together(component, problem, "left", None)


def documents_apart(component: Any, problem: SequenceProblem) -> None:
    """Packed documents give what they give apart, each from a fresh state, also when cut into two calls.

    Outputs, what comes next and gradients, with masked tokens among them. A row's first document continues
    the given state.
    """
    ids = problem.segment_ids().masked_fill(~problem.mask(), UNREAD_DOCUMENT)
    _apart_is_together(component, problem, "anywhere", ids)


def every_parameter_learns(component: Any, problem: SequenceProblem) -> None:
    """Every parameter has a finite gradient that is not 0, in a stream from a fresh state."""
    y, _ = component(problem.inputs(component, LEARNING))
    for name, gradient in gradients({"y": y}, dict(component.named_parameters())).items():
        largest = float(gradient.abs().max())
        if not 0 < largest < float("inf"):
            raise Mismatch(
                f"the largest gradient of the parameter {name!r} in {LEARNING} tokens is {largest:g}: "
                + ("it has no influence on the outputs." if largest == 0 else "it is not finite.")
            )


@torch.no_grad()
def reading_does_not_write(component: Any, problem: SequenceProblem) -> None:
    """With write=False no row's memory holds weights or slots that none of the row's memories held before.

    Row by row: a row may have begun a segment, and remember how its memory was then, while the next has not.
    """
    state = problem.state_for(component)
    _, after = component(problem.inputs(component), state, write=False)
    before = [memory for _, memory in memories("state", state)]
    for path, memory in memories("state", after):
        for row in range(problem.batch):
            _one_of(path, memory.select([row]), [old.select([row]) for old in before])


@torch.no_grad()
def state_bytes(component: Any, problem: SequenceProblem) -> None:
    """state_bytes(T) = bytes of one row's state after T tokens, in every precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        copied: Any = copied_to(component, dtype)
        x = problem.inputs(component)[:1]
        x = x.to(dtype) if x.is_floating_point() else x
        for tokens in (0, problem.tokens):
            _, state = copied(x[:, :tokens])
            if copied.state_bytes(tokens) != state.bytes:
                raise Mismatch(
                    f"state_bytes({tokens}) = {copied.state_bytes(tokens)}, but a row's state after {tokens} "
                    f"tokens has {state.bytes} bytes in {dtype}."
                )


@torch.no_grad()
def finite(component: Any, problem: SequenceProblem) -> None:
    """Outputs and state are finite after a long stream: constant, alternating, random, a hundred times as large."""
    copied: Any = copied_to(component, torch.float32)
    y, state = copied(problem.adversarial(component))
    for name, x in (("y", y), *named("state", state)):
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise Mismatch(f"{name} has {int((~x.isfinite()).sum())} of {x.numel()} elements that are not finite.")


@torch.no_grad()
def save_and_load(component: Any, problem: SequenceProblem) -> None:
    """load_state(save_state(state)) is the state to the last bit, and goes on as it would have."""
    _, state = component(problem.inputs(component), problem.state_for(component))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(state, path)
        loaded = load_state(path)
    identical("loaded state", loaded, state)
    same("y after loading", _next(component, problem, loaded), _next(component, problem, state))


@torch.no_grad()
def generate_is_recomputation(model: Any, problem: SequenceProblem) -> None:
    """generate gives the likeliest token after all tokens so far, read afresh; its state continues the text.

    With the state: generate(ids, n + m) = generate(last token of generate(ids, n), m).
    """
    prompt, first, more = problem.inputs(model), *problem.cuts
    long, long_state = model.generate(prompt, max_new_tokens=first + more)
    text = prompt
    for _ in range(first + more):
        logits, _ = model(text)
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
    same("generated ids", long, text)
    same_trees("state", long_state, model(text[:, :-1])[1])
    ids, state = model.generate(prompt, max_new_tokens=first)
    rest, end = model.generate(ids[:, -1:], max_new_tokens=more, state=state)
    same("ids generated from a state", torch.cat([ids, rest[:, 1:]], 1), long)
    same_trees("state of two calls", end, long_state)


def has_memory(component: Any) -> bool:
    """Whether the state holds a memory that writes."""
    return next(memories("state", component.init_state(1)), None) is not None


def memories(name: str, tree: Tree) -> Iterator[tuple[str, MemoryState]]:
    """Every memory of a state tree, with its path."""
    if isinstance(tree, MemoryState):
        yield name, tree
    elif isinstance(tree, State):
        for key, value in fields(tree).items():
            yield from memories(f"{name}.{key}", value)
    elif isinstance(tree, tuple):
        for key, value in enumerate(tree):
            yield from memories(f"{name}.{key}", value)


def _one_of(path: str, memory: MemoryState, before: list[MemoryState]) -> None:
    """Raise `Mismatch` unless a memory holds the weights and slots of one of those before."""
    for old in before[:-1]:
        try:
            return same_trees(path, (memory.weights, memory.slots), (old.weights, old.slots))
        except Mismatch:
            continue
    same_trees(path, (memory.weights, memory.slots), (before[-1].weights, before[-1].slots))


def _next(component: Any, problem: SequenceProblem, state: Any, rows: slice = slice(None)) -> Tensor:
    """What the component says of the tokens after."""
    return component(problem.inputs(component, NEXT, stream=8)[rows], state)[0]


def _outcome(component: nn.Module, x: Tensor, run: Callable[[Tensor], dict[str, Tree]]) -> Outcome:
    """Run, and differentiate the results in the inputs, if they are numbers, and all parameters."""
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    results = run(x)
    leaves = {"x": x} if x.requires_grad else {}
    return Outcome(results, gradients(results, {**leaves, **dict(component.named_parameters())}))


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
        return {"y": torch.cat(outputs, 1), "y of the next tokens": _next(component, problem, state)}

    def apart(x: Tensor) -> dict[str, Tree]:
        state = problem.state_for(component)
        rows = [_row_apart(component, problem, x, state, b, part) for b, part in enumerate(parts)]
        y, later = (torch.cat(column) for column in zip(*rows, strict=True))
        return {"y": y, "y of the next tokens": later}

    agree(_outcome(component, x, together), _outcome(component, x, apart))


def _row_apart(
    component: Any, problem: SequenceProblem, x: Tensor, state: Any, b: int, parts: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Row b, one call a document and the masked tokens left out."""
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
