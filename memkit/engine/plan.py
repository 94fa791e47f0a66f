"""The list of forms: the one for a rule, and why not a faster one.

A form is entered here in one line, fastest first: `auto` takes the first without obstacles that suits the rule.
"""

from __future__ import annotations

import warnings

import torch

from memkit.engine.core.memory_state import require_rule
from memkit.engine.core.obstacles import not_linear, online
from memkit.engine.form import Form
from memkit.engine.forms.dual import DUAL
from memkit.engine.forms.expand import EXPAND
from memkit.engine.forms.fused.form import FUSED
from memkit.engine.forms.iterate.form import ITERATE, not_iterable
from memkit.engine.forms.scan import SCAN
from memkit.engine.forms.solve import SOLVE
from memkit.engine.forms.step import STEP
from memkit.engine.forms.triton.form import TRITON
from memkit.engine.forms.write import WRITE, not_a_write
from memkit.rule import Rule

FORMS = (WRITE, SOLVE, FUSED, DUAL, ITERATE, EXPAND, STEP, SCAN, TRITON)
BY_NAME = {form.name: form for form in FORMS}
SEQUENTIAL_LIMIT = 1024
"""Tokens above which `auto` says once that a rule runs one token at a time."""

_warned: set[str] = set()


def fastest(rule: Rule) -> Form:
    """The fastest form that is exact for a rule."""
    return next(form for form in FORMS if form.suits(rule) and not form.obstacles(rule))


def exact_forms(rule: Rule) -> list[str]:
    """Names of all forms for a rule on every machine, for tokens of any width."""
    return [form.name for form in FORMS if form is not TRITON and not form.obstacles(rule)]


def of_one_token(rule: Rule) -> Form:
    """The form that `auto` takes for a call of a single token: a block of one has nothing to run at once."""
    return fastest(rule) if STEP.obstacles(rule) else STEP


def choose(rule: Rule, name: str, tokens: int, *, stacklevel: int = 4) -> Form:
    """The form to run; `ValueError` for one not exact for this rule.

    Warns once per rule of a long call with tokens one by one; stacklevel: frames from here to the caller's code.
    """
    if name != "auto":
        found = BY_NAME[name].obstacles(rule)
        if found:
            raise ValueError(
                f"rule {rule.name!r} has no {name} form: {'; '.join(found)}. Use form='auto', which takes the form "
                f"{fastest(rule).name!r}."
            )
        return BY_NAME[name]
    if tokens == 1:
        return of_one_token(rule)
    if tokens > SEQUENTIAL_LIMIT and one_by_one(rule) and rule.name not in _warned:
        _warned.add(rule.name)
        warnings.warn(f"{tokens} tokens of rule {rule.name!r} run one by one: {explain(rule)}", stacklevel=stacklevel)
    return fastest(rule)


def check_products(rule: Rule, form: str, products: torch.dtype) -> None:
    """Raise `ValueError` unless blocks of the rule, in this form, may multiply in a dtype of their own."""
    require_rule(rule)
    taken = choose(rule, form, 0)
    found = FUSED.obstacles(rule) if taken in (FUSED, DUAL) else [f"it takes the form {taken.name!r}, and not 'fused'"]
    if found:
        raise ValueError(f"products={products} is not for rule {rule.name!r}: {'; '.join(found)}. Leave it out.")


def one_by_one(rule: Rule) -> bool:
    """True if the fastest form of this rule runs Python per token."""
    form = fastest(rule)
    return form in (SCAN, STEP) or (form in (FUSED, DUAL, EXPAND) and online(rule))


def explain(rule: Rule) -> str:
    """Say which form `auto` takes for a rule, why no faster one fits, and how the rule departs from its paper.

    The first word is the form of a call of several tokens; that of a single token is named if it is another. Raises
    `ValueError` for anything but a rule.
    """
    require_rule(rule)
    form = fastest(rule)
    text = _why_one_by_one(rule) if form.why is None or (form is DUAL and online(rule)) else form.why(rule)
    if form is DUAL and not online(rule) and (found := FUSED.obstacles(rule)):
        text += f" The form 'fused', compile_blocks() and products= are not for it: {'; '.join(found)}."
    if of_one_token(rule) is not form:
        text += f" A call of a single token, as in decoding, takes the form {of_one_token(rule).name!r}."
    if rule.surprise_limit is not None:
        text += f" Departure from the paper: each token's gradient norm is limited to {rule.surprise_limit:g}."
    return text


def _why_one_by_one(rule: Rule) -> str:
    form, obstacles = fastest(rule).name, not_linear(rule)
    if not obstacles:
        obstacles = not_iterable(rule) or ["compiled code cannot test whether 'iterate' has converged"]
        return (
            f"{form}: one token at a time, because mini_batch=1 updates the weights that the next gradient sees at "
            f"every token, and {'; '.join(obstacles)}. A larger mini_batch is parallel, and another rule."
        )
    if rule.update_every > 1:
        obstacles += not_a_write(rule)
    remedy = ""
    if rule.update_every == 1 and not (rule.optimizer.linear and rule.retention.linear):
        remedy = " With update_every=n it would write once every n tokens, in parallel: another rule."
    return f"{form}: token by token, because {'; '.join(obstacles)}.{remedy}"
