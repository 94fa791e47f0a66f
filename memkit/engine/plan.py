"""Which form a rule can take, and why not a faster one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from memkit.engine.core.memory_state import require_rule
from memkit.parts.memory import MLPMemory
from memkit.registry import nearest
from memkit.rule import Rule, at_weights, identity

Form = Literal["auto", "scan", "dual", "solve", "iterate", "write", "expand", "step", "triton"]
EVERYWHERE = ("scan", "dual", "solve", "iterate", "write", "expand", "step")
"""The forms that run on every machine and for tokens of any width: those that `auto` chooses from."""
FORMS = ("auto", *EVERYWHERE, "triton")
SEQUENTIAL_LIMIT = 1024
"""Tokens above which `auto` says once that a rule runs one token at a time."""

KERNEL_BLOCKS = (16, 32, 64)
"""Tokens of a mini-batch that the form "triton" takes."""

_warned: set[str] = set()


def _not_linear(rule: Rule) -> list[str]:
    """What keeps a rule from every form that unrolls its update with scalars."""
    found = []
    for part, kind in ((rule.optimizer, "optimizer"), (rule.retention, "retention")):
        if not part.linear:
            found.append(f"its {kind} {part.name!r} is not linear in the gradient")
    if rule.optimizer.direction is not None:
        found.append(f"its optimizer {rule.optimizer.name!r} turns each step in a way that is not linear")
    if rule.update_every > 1:
        found.append(f"it writes once every {rule.update_every} tokens")
    channels = _channels(rule, "value")
    if channels:
        found.append(f"its gates {channels} are per value channel")
    channels = _channels(rule, "key")
    if channels and rule.window > 1:
        found.append(f"its gates {channels} are per key channel, and its writes use {rule.window} gradients")
    return found


def _channels(rule: Rule, axis: str) -> list[str]:
    return [gate.name for gate in rule.weight_gates if gate.per == axis]


def _moving_weights(rule: Rule) -> list[str]:
    """What keeps a rule from the forms whose gradients see weights that move inside of a block."""
    found = _not_linear(rule)
    if rule.effective is not identity:
        found.append("its effective weights are not linear in the raw ones")
    if rule.window > 1:
        found.append(f"each write uses {rule.window} gradients at weights of its own")
    return found


def _not_solvable(rule: Rule) -> list[str]:
    found = _moving_weights(rule)
    if not rule.memory.linear:
        found.append("its memory is not a single matrix")
    if not (rule.objective.quadratic or rule.objective.linear):
        found.append(f"the gradient of its objective {rule.objective.name!r} is not linear in the prediction")
    if rule.sees_weights and rule.mini_batch > 1:
        found.append(f"its gradients see the weights of every {rule.mini_batch}th token only")
    if rule.surprise_limit is not None:
        found.append("its surprise_limit is not linear")
    return found


def _not_iterable(rule: Rule) -> list[str]:
    found = _moving_weights(rule)
    channels = _channels(rule, "key")
    if channels:
        found.append(f"its gates {channels} are per key channel")
    return found + ([] if rule.sees_weights else ["its gradient does not see the weights"])


def not_swept(rule: Rule) -> list[str]:
    """What keeps blocks of the form "dual" from being swept: then none is compiled, and `products` is refused."""
    found = [] if rule.point is at_weights else ["its gradients are taken at a point of its own"]
    if rule.effective is not identity:
        found.append("its effective weights are others than it keeps")
    if rule.window > 1:
        found.append(f"each write uses {rule.window} gradients")
    channels = [gate.name for gate in rule.weight_gates if gate.per not in ("head", "pair")]
    if channels:
        found.append(f"its gates {channels} are per channel")
    return found if rule.surprise_limit is None else [*found, "it has a surprise_limit"]


def _not_a_write(rule: Rule) -> list[str]:
    found = [] if rule.update_every > 1 else ["it writes at every token"]
    if rule.point is not at_weights:
        found.append("its gradient point changes from token to token")
    return found


def _not_expandable(rule: Rule) -> list[str]:
    """What keeps a rule from the form that makes every token's step as a whole matrix."""
    if rule.optimizer.direction is None:
        return ["its steps need not be formed"]
    found = _not_linear(replace(rule, optimizer=replace(rule.optimizer, direction=None)))
    if rule.effective is not identity:
        found.append("its effective weights are not linear in the raw ones")
    channels = _channels(rule, "key")
    if channels:
        found.append(f"its gates {channels} are per key channel")
    return found


def _not_stepped(rule: Rule) -> list[str]:
    """What keeps a rule from the form that takes one token after the other with one gradient each."""
    found = [f"it writes once every {rule.update_every} tokens"] if rule.update_every > 1 else []
    return found + ([f"each write uses {rule.window} gradients"] if rule.window > 1 else [])


def _not_for_the_kernel(rule: Rule) -> list[str]:
    """What keeps a rule from the kernel of `triton_dual`, whatever the widths of its tokens are."""
    found = _moving_weights(rule)
    memory = rule.memory
    plain = isinstance(memory, MLPMemory) and memory.depth == 2 and memory.activation == "silu" and not memory.residual
    if not plain:
        found.append("its memory is not an MLP of depth 2 with silu")
    if not (rule.objective.quadratic or rule.objective.linear):
        found.append(f"the gradient of its objective {rule.objective.name!r} is not linear in the prediction")
    if rule.point is not at_weights:
        found.append("its gradient point is not the weights themselves")
    if rule.slots != 1:
        found.append(f"it keeps {rule.slots} numbers beside each weight, and the kernel one, the momentum")
    if rule.mini_batch not in KERNEL_BLOCKS:
        found.append(f"its mini_batch is {rule.mini_batch}, and the kernel's blocks have 16, 32 or 64 tokens")
    if rule.surprise_limit is not None:
        found.append("its surprise_limit is not linear")
    return found


OBSTACLES: dict[str, Callable[[Rule], list[str]]] = {
    "scan": lambda rule: [],
    "dual": _not_linear,
    "solve": _not_solvable,
    "iterate": _not_iterable,
    "write": _not_a_write,
    "expand": _not_expandable,
    "step": _not_stepped,
    "triton": _not_for_the_kernel,
}
"""What stands in the way of each form; an empty list where nothing does."""


def fastest(rule: Rule) -> str:
    """The fastest form that is exact for a rule."""
    if not _not_a_write(rule):
        return "write"
    if not _not_solvable(rule):
        return "solve"
    one_after_the_other = "scan" if _not_stepped(rule) else "step"
    if _not_linear(rule):
        return one_after_the_other if _not_expandable(rule) else "expand"
    if not (rule.sees_weights and rule.mini_batch == 1):
        return "dual"
    # Compiled code cannot look whether rounds settle.
    if not _not_iterable(rule) and not torch.compiler.is_compiling():
        return "iterate"
    return "dual" if rule.window > 1 else one_after_the_other


def choose(rule: Rule, form: str, tokens: int, *, stacklevel: int = 4) -> str:
    """Return the form that will run; `ValueError` for one that is unknown or not exact for this rule."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}. {nearest(form, FORMS)}")
    if form != "auto":
        found = OBSTACLES[form](rule)
        if found:
            raise ValueError(
                f"rule {rule.name!r} has no {form} form: {'; '.join(found)}. Use form='auto', which takes the form "
                f"{fastest(rule)!r}."
            )
        return form
    if tokens == 1:
        return of_one_token(rule)
    form = fastest(rule)
    if tokens > SEQUENTIAL_LIMIT and one_by_one(rule) and rule.name not in _warned:
        _warned.add(rule.name)
        warnings.warn(f"{tokens} tokens of rule {rule.name!r} run one by one: {explain(rule)}", stacklevel=stacklevel)
    return form


def of_one_token(rule: Rule) -> str:
    """The form that `auto` takes for a call of a single token: a block of one has nothing to run at once."""
    return fastest(rule) if _not_stepped(rule) else "step"


def one_by_one(rule: Rule) -> bool:
    """Whether the fastest form of this rule runs Python per token."""
    form = fastest(rule)
    return form in ("scan", "step") or (form in ("dual", "expand") and rule.sees_weights and rule.mini_batch == 1)


def explain(rule: Rule) -> str:
    """Say which form `auto` takes for a rule, what stands in the way of a faster one, and any departure.

    The first word is the form of several tokens; that of a single one is named where it is another. Raises
    `ValueError` for what is no rule.
    """
    require_rule(rule)
    form = fastest(rule)
    text = _REASONS[form](rule)
    if of_one_token(rule) != form:
        text += f" A call of a single token, as in decoding, takes the form {of_one_token(rule)!r}."
    if rule.surprise_limit is not None:
        text += f" Departure from the paper: each token's gradient norm is limited to {rule.surprise_limit:g}."
    return text


def _why_one_by_one(rule: Rule) -> str:
    form, obstacles = fastest(rule), _not_linear(rule)
    if not obstacles:
        obstacles = _not_iterable(rule) or ["compiled code cannot look whether rounds of 'iterate' settle"]
        return (
            f"{form}: one token at a time, because mini_batch=1 updates the weights that the next gradient sees at "
            f"every token, and {'; '.join(obstacles)}. A larger mini_batch is parallel, and another rule."
        )
    if rule.update_every > 1:
        obstacles += _not_a_write(rule)
    remedy = ""
    if rule.update_every == 1 and not (rule.optimizer.linear and rule.retention.linear):
        remedy = " With update_every=n it would write once every n tokens, in parallel: another rule."
    return f"{form}: token by token, because {'; '.join(obstacles)}.{remedy}"


def _why_dual(rule: Rule) -> str:
    if rule.sees_weights and rule.mini_batch == 1:
        return _why_one_by_one(rule)
    text = "dual: its gradient does not see the weights, so blocks of any size run at once."
    if rule.sees_weights:
        text = (
            f"dual: every mini-batch of {rule.mini_batch} tokens runs at once, because its gradients see the same "
            "weights. A larger mini_batch is faster, and another rule."
        )
    obstacles = not_swept(rule)
    return f"{text} compile_blocks() and products= are not for it: {'; '.join(obstacles)}." if obstacles else text


def _why_solve(rule: Rule) -> str:
    if not rule.sees_weights:
        return "solve: its gradient does not see the weights, so all blocks run at once."
    return "solve: exact online gradients of a matrix, as one triangular system a block; all blocks at once."


def _why_iterate(rule: Rule) -> str:
    return (
        "iterate: exact online gradients of a deep memory, a block at once by rounds that settle; where they do not, "
        "the block is halved, down to one token. A larger mini_batch needs no rounds, and is another rule."
    )


def _why_write(rule: Rule) -> str:
    return f"write: one dense gradient every {rule.update_every} tokens; its tokens run at once."


def _why_expand(rule: Rule) -> str:
    turned = f"its optimizer {rule.optimizer.name!r} turns every token's step, so each is a whole matrix"
    if not rule.sees_weights:
        return f"expand: {turned}; its gradient does not see the weights, so blocks of any size run at once."
    if rule.mini_batch == 1:
        return (
            f"expand: one token at a time, because mini_batch=1 updates the weights that the next gradient sees, and "
            f"{turned}. A larger mini_batch is parallel, and another rule; so is update_every=n, with one step every "
            "n tokens."
        )
    return (
        f"expand: every mini-batch of {rule.mini_batch} tokens runs at once; {turned}, which costs time and memory. "
        "With mini_batch=1 and update_every=n there is one step every n tokens: another rule."
    )


_REASONS: dict[str, Callable[[Rule], str]] = {
    "scan": _why_one_by_one,
    "step": _why_one_by_one,
    "dual": _why_dual,
    "solve": _why_solve,
    "iterate": _why_iterate,
    "write": _why_write,
    "expand": _why_expand,
}
