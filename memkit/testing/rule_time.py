"""Laws of rules about time: forms, cuts, decoding, causality, and state as a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memkit.engine import MemoryState
from memkit.rule import Rule, Tokens
from memkit.state import Tree, map_tensors
from memkit.testing.close import Mismatch, identical, named, same, same_trees, unmoved
from memkit.testing.outcome import Outcome, agree, outcome
from memkit.testing.strategies import RuleProblem, forms, mixed, pick

ALL = slice(None)


def given(tokens: Tokens, state: MemoryState) -> dict[str, Tree]:
    """Everything that gradients flow to, by name."""
    return {**tokens._asdict(), "state": state}


def tokens_of(leaves: dict[str, Tree]) -> Tokens:
    """The tokens among what was given."""
    return Tokens(*(leaves[name] for name in Tokens._fields))


def meant(state: MemoryState) -> MemoryState:
    """A state without what means nothing: the contents of a window's unfilled places."""
    if state.window is None:
        return state
    filled = state.window.filled[:, None, :]

    def clear(x: Tensor) -> Tensor:
        return torch.where(filled.view(*filled.shape, *[1] * (x.dim() - 3)), x, 0.0)

    window = state.window
    cleared = {name: clear(gate) for name, gate in window.gates.items()}
    return replace(state, window=replace(window, k=clear(window.k), v=clear(window.v), gates=cleared))


def run_whole(rule: Rule, problem: RuleProblem, **options: Any) -> Outcome:
    """One call from the problem's state over all its tokens, differentiated."""

    def run(leaves: dict[str, Tree]) -> dict[str, Tree]:
        y, state = problem.engine.memorize(rule, *tokens_of(leaves), leaves["state"], **options)
        return {"y": y, "state": meant(state)}

    return outcome(run, given(problem.tokens_for(rule), problem.state_for(rule)))


def forms_agree(rule: Rule, problem: RuleProblem) -> None:
    """form(tokens, state) = scan(tokens, state) for every form: outputs, final state and every gradient.

    Gradients are those of q, k, v, the gates and the whole initial state.
    """
    definition = run_whole(rule, problem, form="scan")
    for form in [form for form in forms(rule) if form != "scan"]:
        agree(run_whole(rule, problem, form=form, block_size=problem.block_size), definition)


def split_anywhere(rule: Rule, problem: RuleProblem) -> None:
    """run(a ++ b, state) = run(b, run(a, state)), a or b empty too, with another form after each cut.

    Outputs, final state and every gradient.
    """
    offered = forms(rule)
    first = offered.index(problem.form) if problem.form in offered else 0
    places = [0, *problem.cuts, problem.tokens]

    def run(leaves: dict[str, Tree]) -> dict[str, Tree]:
        tokens, state, outputs = tokens_of(leaves), leaves["state"], []
        for i, (start, stop) in enumerate(zip(places, places[1:], strict=False)):
            piece = pick(tokens, ALL, slice(start, stop))
            form = offered[(first + i) % len(offered)]
            y, state = problem.engine.memorize(rule, *piece, state, form=form, block_size=problem.block_size)
            outputs.append(y)
        return {"y": torch.cat(outputs, 1), "state": meant(state)}

    pieces = outcome(run, given(problem.tokens_for(rule), problem.state_for(rule)))
    agree(pieces, run_whole(rule, problem, form=problem.form))


@torch.no_grad()
def decode_is_prefill(rule: Rule, problem: RuleProblem) -> None:
    """Token by token, in one call each, gives what one call for all gives."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    y, final = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    steps = []
    for t in range(problem.tokens):
        step, state = problem.engine.memorize(rule, *pick(tokens, ALL, slice(t, t + 1)), state, form=problem.form)
        steps.append(step)
    same("y", torch.cat(steps, 1), y)
    same_trees("state", meant(state), meant(final))


def empty_call(rule: Rule, problem: RuleProblem) -> None:
    """T = 0 is the identity: no outputs, and the state it was given."""
    tokens, state = problem.tokens_for(rule, length=0), problem.state_for(rule)
    y, after = problem.engine.memorize(rule, *tokens, state, form=problem.form, block_size=problem.block_size)
    same("y", y, tokens.v[..., : problem.value_dim])
    same_trees("state", meant(after), meant(state))


@torch.no_grad()
def causality(rule: Rule, problem: RuleProblem) -> None:
    """Outputs before token j do not change when token j and all after it do: exactly, or by 1e-12 of the largest."""
    j, state = max(1, problem.cuts[1]), problem.state_for(rule)
    tokens, others = problem.tokens_for(rule), problem.tokens_for(rule, stream=7)
    past = (torch.arange(problem.tokens) < j).expand(problem.batch, -1)
    run = {"form": problem.form, "block_size": problem.block_size}
    y, _ = problem.engine.memorize(rule, *tokens, state, **run)
    changed, _ = problem.engine.memorize(rule, *mixed(past, tokens, others), state, **run)
    unmoved(f"y of tokens before {j}", changed[:, :j], y[:, :j], float(y.abs().max()))


def block_size_is_speed(rule: Rule, problem: RuleProblem) -> None:
    """block_size changes nothing: outputs, final state and gradients are those of one large block."""
    small = run_whole(rule, problem, form=problem.form, block_size=problem.block_size)
    agree(small, run_whole(rule, problem, form=problem.form, block_size=64))


def state_is_a_value(rule: Rule, problem: RuleProblem) -> None:
    """A call leaves its arguments as they were, to the last bit; so the same call gives the same answer again."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    kept_tokens, kept_state = map_tensors(torch.clone, (tuple(tokens), state))
    run = {"form": problem.form, "block_size": problem.block_size}
    y, after = problem.engine.memorize(rule, *tokens, state, **run)
    kept_y, kept_after = map_tensors(torch.clone, (y, after))
    identical("tokens", tuple(tokens), kept_tokens)
    identical("state given", state, kept_state)
    problem.engine.memorize(rule, *tokens, after, **run)
    identical("y of an earlier call", y, kept_y)
    identical("state of an earlier call", after, kept_after)
    again, after_again = problem.engine.memorize(rule, *tokens, state, **run)
    identical("y of the same call", again, y)
    identical("state of the same call", after_again, after)


@torch.no_grad()
def state_size(rule: Rule, problem: RuleProblem) -> None:
    """The state after T tokens has the shapes and dtypes that it began with, for every T."""
    fresh = problem.fresh_state(rule)
    _, after = problem.engine.memorize(rule, *problem.tokens_for(rule), fresh, form=problem.form)
    kinds, began = ({path: (tuple(x.shape), x.dtype) for path, x in named("state", state)} for state in (after, fresh))
    changed = sorted(path for path in kinds.keys() | began.keys() if kinds.get(path) != began.get(path))
    if changed:
        path = changed[0]
        raise Mismatch(
            f"after {problem.tokens} tokens {path} is {kinds.get(path)}, and at the start it was {began.get(path)}; "
            f"{len(changed)} tensor(s) of the state have changed their kind."
        )


@torch.no_grad()
def retrieve_is_reading(rule: Rule, problem: RuleProblem) -> None:
    """retrieve(state, q) is what the next token would read under read="before", for any number of queries."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    before = replace(rule, read="before")
    read = problem.engine.retrieve(rule, state, tokens.q)
    for t in (0, problem.tokens - 1):
        one = pick(tokens, ALL, slice(t, t + 1))
        y, _ = problem.engine.memorize(before, *one, state, form=problem.form)
        same(f"retrieve(q) at query {t}", read[:, t : t + 1], y)
