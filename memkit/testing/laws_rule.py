"""The laws that every rule is held to, in the order in which a reader wants to know.

A law is a function `law(rule, problem)`; its docstring is its equation. To add one, write the function and
add a line here.
"""

from __future__ import annotations

from memkit.rule import Rule
from memkit.testing import rule_gates, rule_numbers, rule_parts, rule_rows, rule_time
from memkit.testing.law import Law, table


def has_lr(rule: Rule) -> bool:
    """Whether a step size can be set to 0."""
    return "lr" in rule.gates


def has_lr_and_decay(rule: Rule) -> bool:
    """Whether both writing and forgetting can be switched."""
    return {"lr", "decay"} <= rule.gates.keys()


APART = "an operation over the axis of {}, a mean or a norm say, in prepare, loss or memory."
STATE = "What a step remembers goes into its slots, and nowhere else; tensors are replaced, never written into."

RULE_LAWS: dict[str, Law] = table(
    [
        Law(
            "shapes",
            rule_parts.shapes,
            hint="sums over the last axis, tensors that broadcast where they should not, and gates that no part lists.",
        ),
        Law(
            "finite", rule_parts.finite, hint="divisions, roots, powers and logarithms at 0: add a small number inside."
        ),
        Law(
            "inner gradient",
            rule_gates.inner_gradient,
            hint="a backward written by hand, or .detach() and .data in a loss or memory.",
        ),
        Law(
            "descent",
            rule_gates.descent,
            has_lr,
            "a gate 'lr'",
            hint="the sign: `step` is given the gradient itself, so it returns minus lr times it.",
        ),
        Law(
            "linear as declared",
            rule_gates.linear_as_declared,
            rule_gates.declares_something_linear,
            "a part that is declared linear",
            hint="a clip, norm, sign or square in that part. Say linear=False, or move it into the objective.",
        ),
        Law(
            "neutral gates",
            rule_gates.neutral_gates,
            has_lr,
            "a gate 'lr'",
            hint="a forgetting or a step that no gate switches off.",
        ),
        Law(
            "clearing gates",
            rule_gates.clearing_gates,
            has_lr_and_decay,
            "the gates 'lr' and 'decay'",
            hint="the gate the other way round: `decay` is what is forgotten, so weights are multiplied by 1 - decay.",
        ),
        Law("forms agree", rule_time.forms_agree, hint="'linear as declared' first: fast forms rest on those claims."),
        Law("block size is speed", rule_time.block_size_is_speed),
        Law(
            "split anywhere",
            rule_time.split_anywhere,
            hint=f"'forms agree' first: each piece takes another form. {STATE}",
        ),
        Law("decode is prefill", rule_time.decode_is_prefill, hint=STATE),
        Law("empty call", rule_time.empty_call, hint=STATE),
        Law("causality", rule_time.causality, hint=APART.format("tokens")),
        Law("retrieve is reading", rule_time.retrieve_is_reading),
        Law("state is a value", rule_time.state_is_a_value, hint=STATE),
        Law("state size", rule_time.state_size, hint=STATE),
        Law("rows apart", rule_rows.rows_apart, hint=APART.format("rows")),
        Law("heads apart", rule_rows.heads_apart, hint=APART.format("heads")),
        Law("masked token", rule_rows.masked_token, hint=APART.format("tokens")),
        Law("left padding", rule_rows.left_padding, hint=APART.format("tokens")),
        Law("documents apart", rule_rows.documents_apart, hint=APART.format("tokens")),
        Law("outer gradient", rule_gates.outer_gradient, share=0.3, hint=".detach(), .data or .item() in a part."),
        Law("rounding", rule_numbers.rounding, hint="differences of large numbers, and casts to a smaller dtype."),
        Law(
            "single precision",
            rule_numbers.single_precision,
            has_lr_and_decay,
            "the gates 'lr' and 'decay'",
            share=0.1,
            hint="a memory that grows, or differences of large numbers.",
        ),
        Law("save and load", rule_numbers.save_and_load, share=0.5, hint=STATE),
    ]
)
