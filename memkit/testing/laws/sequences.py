"""Laws of everything that maps a sequence to a sequence: mixers, and language models through their ids.

States are compared by their tensors, or by the outputs of the next tokens if their representations may rightly
differ, as caches of rows with different numbers of tokens do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.files import load_state, save_state
from memkit.state import State, Tree, fields, map_tensors
from memkit.testing.laws.sequence_masks import differentiate_component, next_outputs
from memkit.testing.results_and_gradients import agree, functional, gradients
from memkit.testing.sequences import SequenceProblem, copied_to
from memkit.testing.tolerance import Mismatch, identical, named, same, same_trees, unchanged

LEARNING = 24
"""Tokens after which every parameter must have had an influence."""


def split_anywhere(component: Any, problem: SequenceProblem) -> None:
    """run(a ++ b, state) = run(b, run(a, state)), a or b empty too.

    Compared: outputs, state and every gradient.
    """
    component = problem.enlarged(component)
    places = [0, *problem.cuts, problem.tokens]

    def run(x: Tensor, starts: list[int]) -> dict[str, Tree]:
        state, outputs = problem.state_for(component), []
        for start, stop in zip(starts, starts[1:], strict=False):
            y, state = component(x[:, start:stop], state, write=problem.write)
            outputs.append(y)
        return {
            "y": torch.cat(outputs, 1),
            "state": state,
            "y of the next tokens": next_outputs(component, problem, state),
        }

    x = problem.inputs(component)
    agree(
        differentiate_component(component, x, lambda x: run(x, places)),
        differentiate_component(component, x, lambda x: run(x, [0, problem.tokens])),
    )


@torch.no_grad()
def decode_is_prefill(component: Any, problem: SequenceProblem) -> None:
    """One call per token = one call for all tokens: outputs and state."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, final = component(x, state, write=problem.write)
    steps = []
    for t in range(problem.tokens):
        step, state = component(x[:, t : t + 1], state, write=problem.write)
        steps.append(step)
    same("y", torch.cat(steps, 1), y)
    same_trees("state", state, final)


def empty_call(component: Any, problem: SequenceProblem) -> None:
    """run(no tokens, state) = no outputs, and the same state; with a mask and documents too."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, _ = component(x, state)
    nothing = problem.mask(length=0)
    for options in ({}, {"mask": nothing}, {"segment_ids": nothing.long()}, {"write": False}):
        none, after = component(x[:, :0], state, **options)
        same(f"y with {sorted(options)}", none, y[:, :0])
        same_trees(f"state with {sorted(options)}", after, state)


@torch.no_grad()
def causality(component: Any, problem: SequenceProblem) -> None:
    """y_t does not depend on tokens after t: exactly, or to 1e-12 of the largest output."""
    component = problem.enlarged(component)
    j, x, others = max(1, problem.cuts[1]), problem.inputs(component), problem.inputs(component, stream=7)
    state = problem.state_for(component)
    y, _ = component(x, state, write=problem.write)
    changed, _ = component(torch.cat([x[:, :j], others[:, j:]], 1), state, write=problem.write)
    unchanged(f"y of tokens before {j}", changed[:, :j], y[:, :j], float(y.abs().max()))


@torch.no_grad()
def rows_apart(component: Any, problem: SequenceProblem) -> None:
    """run(batch)[b] = run(batch[b]) for every row b: outputs, and outputs of the next tokens."""
    x, state = problem.inputs(component), problem.state_for(component)
    y, after = component(x, state, write=problem.write)
    later = next_outputs(component, problem, after)
    for b in range(problem.batch):
        row = slice(b, b + 1)
        alone, after = component(x[row], state.select(row), write=problem.write)
        same(f"y of row {b}", y[row], alone)
        same(f"y of the next tokens of row {b}", later[row], next_outputs(component, problem, after, row))


@torch.no_grad()
def state_is_a_value(component: Any, problem: SequenceProblem) -> None:
    """A call changes no bit of inputs, state, module or earlier results; repeated, it gives the same bits."""
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


def every_parameter_learns(component: Any, problem: SequenceProblem) -> None:
    """0 < max |d y / d parameter| < inf for every parameter, in a stream from a fresh state."""
    y, _ = component(problem.inputs(component, LEARNING))
    for name, gradient in gradients(functional(y), dict(component.named_parameters())).items():
        largest = float(gradient.abs().max())
        if not 0 < largest < float("inf"):
            raise Mismatch(
                f"the largest gradient of the parameter {name!r} in {LEARNING} tokens is {largest:g}: "
                + ("it has no influence on the outputs." if largest == 0 else "it is not finite.")
            )


@torch.no_grad()
def reading_does_not_write(component: Any, problem: SequenceProblem) -> None:
    """write=False: each memory of a row holds the weights and slots of a memory of this row before the call.

    Row by row: a row may have begun a segment, and hold the memory of its start, while the next row has not.
    """
    state = problem.state_for(component)
    _, after = component(problem.inputs(component), state, write=False)
    before = [memory for _, memory in memories("state", state)]
    for path, memory in memories("state", after):
        for row in range(problem.batch):
            _one_of(path, memory.select([row]), [old.select([row]) for old in before])


@torch.no_grad()
def state_bytes(component: Any, problem: SequenceProblem) -> None:
    """state_bytes(T) = the bytes of one row's state after T tokens, in every precision."""
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
    """Outputs and state are finite after a long stream: constant, alternating, random, and 100 times larger."""
    copied: Any = copied_to(component, torch.float32)
    y, state = copied(problem.adversarial(component))
    for name, x in (("y", y), *named("state", state)):
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise Mismatch(f"{name} has {int((~x.isfinite()).sum())} of {x.numel()} elements that are not finite.")


@torch.no_grad()
def save_and_load(component: Any, problem: SequenceProblem) -> None:
    """load_state(save_state(state)) = state, to the last bit, and the next outputs are the same."""
    _, state = component(problem.inputs(component), problem.state_for(component))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(state, path)
        loaded = load_state(path)
    identical("loaded state", loaded, state)
    same("y after loading", next_outputs(component, problem, loaded), next_outputs(component, problem, state))


@torch.no_grad()
def generate_is_recomputation(model: Any, problem: SequenceProblem) -> None:
    """generate(ids, n + 1) = generate(ids, n) ++ the likeliest token after it, all tokens read afresh.

    With its state: generate(ids, n + m) = generate(last token of generate(ids, n), m, state).
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
    """Tell whether the state holds a memory."""
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
