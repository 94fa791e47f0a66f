"""The laws of every rule, the parts before the whole.

To add a law, write a function `law(rule, problem)`, with its equation as docstring, and add a line here.
"""

from __future__ import annotations

from memkit.rule import Rule
from memkit.testing.law import Law, table
from memkit.testing.laws import forms, gates, gradients, parts, precision, rows, state


def has_lr(rule: Rule) -> bool:
    """Tell whether the rule has a step size to set to 0."""
    return "lr" in rule.gates


def has_lr_and_decay(rule: Rule) -> bool:
    """Tell whether gates switch both writing and forgetting."""
    return {"lr", "decay"} <= rule.gates.keys()


APART = "an operation over the axis of {}, a mean or a norm say, in prepare, loss or memory."
STATE = "slots: they hold everything that a step remembers. Replace tensors, never write into them."

RULE_LAWS: dict[str, Law] = table(
    [
        Law(
            "shapes",
            parts.shapes,
            hint="sums over the last axis, tensors that broadcast where they should not, and gates that no part lists.",
        ),
        Law("finite", parts.finite, hint="divisions, roots, powers and logarithms at 0: add a small number inside."),
        Law(
            "inner gradient",
            gradients.inner_gradient,
            hint="a backward written by hand, or .detach() and .data in a loss or memory.",
        ),
        Law(
            "descent",
            gradients.descent,
            has_lr,
            "a gate 'lr'",
            hint="the sign: `step` gets the gradient itself, so it returns minus lr times it.",
        ),
        Law(
            "linear as declared",
            gates.linear_as_declared,
            gates.declares_something_linear,
            "a part that is declared linear",
            hint="a clip, norm, sign or square in that part. Say linear=False, or move it into the objective.",
        ),
        Law(
            "neutral gates",
            gates.neutral_gates,
            has_lr,
            "a gate 'lr'",
            hint="a decay or a step without a gate that switches it off.",
        ),
        Law(
            "clearing gates",
            gates.clearing_gates,
            has_lr_and_decay,
            "the gates 'lr' and 'decay'",
            hint="the gate the other way round: `decay` is the share to forget, so multiply weights by 1 - decay.",
        ),
        Law(
            "forms agree",
            forms.forms_agree,
            hint="'linear as declared' first: fast forms rest on those claims.",
        ),
        Law("block size is speed", forms.block_size_is_speed),
        Law(
            "split anywhere",
            forms.split_anywhere,
            hint=f"'forms agree' first, as each piece takes another form. Then {STATE}",
        ),
        Law("decode is prefill", forms.decode_is_prefill, hint=STATE),
        Law("empty call", forms.empty_call, hint=STATE),
        Law("causality", forms.causality, hint=APART.format("tokens")),
        Law("retrieve is reading", forms.retrieve_is_reading),
        Law("state is a value", state.state_is_a_value, hint=STATE),
        Law("state size", state.state_size, hint=STATE),
        Law("rows apart", rows.rows_apart, hint=APART.format("rows")),
        Law("heads apart", rows.heads_apart, hint=APART.format("heads")),
        Law("masked token", rows.masked_token, hint=APART.format("tokens")),
        Law("left padding", rows.left_padding, hint=APART.format("tokens")),
        Law("documents apart", rows.documents_apart, hint=APART.format("tokens")),
        Law("outer gradient", gradients.outer_gradient, share=0.3, hint=".detach(), .data or .item() in a part."),
        Law(
            "second gradient",
            gradients.second_gradient,
            share=0.2,
            hint="a fused operation, such as F.layer_norm, with a wrong third derivative (write it out); or .detach() "
            "and torch.no_grad() in a backward written by hand.",
        ),
        Law("rounding", precision.rounding, hint="differences of large numbers, and casts to a smaller dtype."),
        Law(
            "single precision",
            precision.single_precision,
            has_lr_and_decay,
            "the gates 'lr' and 'decay'",
            share=0.1,
            hint="a memory that grows, or differences of large numbers.",
        ),
        Law("save and load", state.save_and_load, share=0.5, hint=STATE),
    ]
)
