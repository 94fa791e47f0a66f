"""Which form a rule can take, and why not a faster one."""

from __future__ import annotations

import warnings
from typing import Literal

from memkit.registry import nearest
from memkit.rule import Rule

Form = Literal["auto", "scan", "dual"]
FORMS = ("auto", "scan", "dual")
SEQUENTIAL_LIMIT = 1024
"""Tokens above which `auto` says once that a rule runs one token at a time."""

_warned: set[str] = set()


def obstacles(rule: Rule) -> list[str]:
    """What keeps a rule from the dual form; empty when nothing does."""
    found = []
    for part, kind in ((rule.optimizer, "optimizer"), (rule.retention, "retention")):
        if not part.linear:
            found.append(f"its {kind} {part.name!r} is not linear in the gradient")
    if rule.update_every > 1:
        found.append(f"it writes once every {rule.update_every} tokens")
    channels = [gate.name for gate in rule.gates.values() if gate.per != "head"]
    if channels:
        found.append(f"its gates {channels} are per channel, not per head")
    return found


def choose(rule: Rule, form: str, tokens: int) -> str:
    """Return the form that will run; `ValueError` for one that is unknown or not exact for this rule."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}. {nearest(form, FORMS)}")
    found = obstacles(rule)
    if form == "dual" and found:
        raise ValueError(
            f"rule {rule.name!r} has no dual form: {'; '.join(found)}. Use form='auto', which runs it token by token."
        )
    if form == "auto":
        form = "scan" if found else "dual"
        if tokens > SEQUENTIAL_LIMIT and one_by_one(rule) and rule.name not in _warned:
            _warned.add(rule.name)
            warnings.warn(f"{tokens} tokens of rule {rule.name!r} run one by one: {explain(rule)}", stacklevel=4)
    return form


def one_by_one(rule: Rule) -> bool:
    """Whether every form of this rule runs Python per token."""
    return bool(obstacles(rule)) or (rule.sees_weights and rule.mini_batch == 1)


def explain(rule: Rule) -> str:
    """Say which form `auto` takes for a rule, what stands in the way of a faster one, and any departure.

    The first word is the form.
    """
    found = obstacles(rule)
    if found:
        text = f"scan: token by token, because {'; '.join(found)}."
    elif not rule.sees_weights:
        text = "dual: its gradient does not see the weights, so blocks of any size run at once."
    elif rule.mini_batch == 1:
        text = (
            "dual: one token at a time, because mini_batch=1 updates the weights that the next gradient sees at "
            "every token. A larger mini_batch is parallel, and another rule."
        )
    else:
        text = (
            f"dual: every mini-batch of {rule.mini_batch} tokens runs at once, because its gradients see the same "
            "weights. A larger mini_batch is faster, and another rule."
        )
    if rule.surprise_limit is not None:
        text += f" Departure from the paper: each token's gradient norm is limited to {rule.surprise_limit:g}."
    return text
