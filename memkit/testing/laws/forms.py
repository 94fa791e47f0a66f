"""Laws of rules about forms and time: all forms, cuts and lengths give one answer, and no token sees the future."""

from __future__ import annotations

from dataclasses import replace

import torch

from memkit.rule import Rule
from memkit.state import Tree
from memkit.testing.laws.runs import ALL, inputs_of, run_whole, tokens_of, without_unfilled
from memkit.testing.results_and_gradients import agree, differentiate
from memkit.testing.strategies import RuleProblem, forms, mixed, pick
from memkit.testing.tolerance import same, same_trees, unchanged


def forms_agree(rule: Rule, problem: RuleProblem) -> None:
    """form(tokens, state) = scan(tokens, state) for every form.

    Compared: outputs, final state, and the gradients in q, k, v, gates and the whole initial state.
    """
    definition = run_whole(rule, problem, form="scan")
    for form in [form for form in forms(rule) if form != "scan"]:
        agree(run_whole(rule, problem, form=form, block_size=problem.block_size), definition)


def block_size_is_speed(rule: Rule, problem: RuleProblem) -> None:
    """run(block_size = n) = run(block_size = 64).

    Compared: outputs, final state and every gradient.
    """
    small = run_whole(rule, problem, form=problem.form, block_size=problem.block_size)
    agree(small, run_whole(rule, problem, form=problem.form, block_size=64))


def split_anywhere(rule: Rule, problem: RuleProblem) -> None:
    """run(a ++ b, state) = run(b, run(a, state)), a or b empty too, with another form after each cut.

    Compared: outputs, final state and every gradient.
    """
    offered = forms(rule)
    first = offered.index(problem.form) if problem.form in offered else 0
    places = [0, *problem.cuts, problem.tokens]

    def run(inputs: dict[str, Tree]) -> dict[str, Tree]:
        tokens, state, outputs = tokens_of(inputs), inputs["state"], []
        for i, (start, stop) in enumerate(zip(places, places[1:], strict=False)):
            piece = pick(tokens, ALL, slice(start, stop))
            form = offered[(first + i) % len(offered)]
            y, state = problem.engine.memorize(rule, *piece, state, form=form, block_size=problem.block_size)
            outputs.append(y)
        return {"y": torch.cat(outputs, 1), "state": without_unfilled(state)}

    pieces = differentiate(run, inputs_of(problem.tokens_for(rule), problem.state_for(rule)))
    agree(pieces, run_whole(rule, problem, form=problem.form))


@torch.no_grad()
def decode_is_prefill(rule: Rule, problem: RuleProblem) -> None:
    """One call per token = one call for all tokens.

    Compared: outputs and final state.
    """
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    y, final = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    steps = []
    for t in range(problem.tokens):
        step, state = problem.engine.memorize(rule, *pick(tokens, ALL, slice(t, t + 1)), state, form=problem.form)
        steps.append(step)
    same("y", torch.cat(steps, 1), y)
    same_trees("state", without_unfilled(state), without_unfilled(final))


def empty_call(rule: Rule, problem: RuleProblem) -> None:
    """run(no tokens, state) = no outputs, and the same state."""
    tokens, state = problem.tokens_for(rule, length=0), problem.state_for(rule)
    y, after = problem.engine.memorize(rule, *tokens, state, form=problem.form, block_size=problem.block_size)
    same("y", y, tokens.v[..., : problem.value_dim])
    same_trees("state", without_unfilled(after), without_unfilled(state))


@torch.no_grad()
def causality(rule: Rule, problem: RuleProblem) -> None:
    """y_t does not depend on tokens after t: exactly, or to 1e-12 of the largest output."""
    j, state = max(1, problem.cuts[1]), problem.state_for(rule)
    tokens, others = problem.tokens_for(rule), problem.tokens_for(rule, stream=7)
    past = (torch.arange(problem.tokens) < j).expand(problem.batch, -1)
    run = {"form": problem.form, "block_size": problem.block_size}
    y, _ = problem.engine.memorize(rule, *tokens, state, **run)
    changed, _ = problem.engine.memorize(rule, *mixed(past, tokens, others), state, **run)
    unchanged(f"y of tokens before {j}", changed[:, :j], y[:, :j], float(y.abs().max()))


@torch.no_grad()
def retrieve_is_reading(rule: Rule, problem: RuleProblem) -> None:
    """retrieve(state, q) = the next token's output under read="before", for any number of queries."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    before = replace(rule, read="before")
    read = problem.engine.retrieve(rule, state, tokens.q)
    for t in (0, problem.tokens - 1):
        one = pick(tokens, ALL, slice(t, t + 1))
        y, _ = problem.engine.memorize(before, *one, state, form=problem.form)
        same(f"retrieve(q) at query {t}", read[:, t : t + 1], y)
