"""Laws of rules about the state: a value of constant size, the same after a visit to a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from memkit.files import load_state, save_state
from memkit.rule import Rule
from memkit.state import map_tensors
from memkit.testing.strategies import RuleProblem
from memkit.testing.tolerance import Mismatch, identical, named, same


def state_is_a_value(rule: Rule, problem: RuleProblem) -> None:
    """A call changes no bit of its arguments or of earlier results; repeated, it gives the same bits."""
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
    """The state after T tokens has the shapes and dtypes of a fresh one, for every T."""
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
def save_and_load(rule: Rule, problem: RuleProblem) -> None:
    """load_state(save_state(state)) = state, to the last bit, and the next outputs are the same."""
    tokens, state = problem.tokens_for(rule), problem.state_for(rule)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_state(state, path)
        loaded = load_state(path)
    identical("loaded state", loaded, state)
    y, _ = problem.engine.memorize(rule, *tokens, state, form=problem.form)
    same("y after loading", problem.engine.memorize(rule, *tokens, loaded, form=problem.form)[0], y)
