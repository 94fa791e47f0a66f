"""The laws that every rule is held to, in the order in which a reader wants to know.

A law is a function `law(rule, problem)`; its docstring is its equation. To add one, write the function and
add a line here.
"""

from __future__ import annotations

from memkit.rule import Rule
from memkit.testing import rule_gates, rule_numbers, rule_rows, rule_time
from memkit.testing.law import Law, table


def has_lr(rule: Rule) -> bool:
    """Whether a step size can be set to 0."""
    return "lr" in rule.gates


def has_lr_and_decay(rule: Rule) -> bool:
    """Whether both writing and forgetting can be switched."""
    return {"lr", "decay"} <= rule.gates.keys()


RULE_LAWS: dict[str, Law] = table(
    [
        Law("inner gradient", rule_gates.inner_gradient),
        Law("descent", rule_gates.descent, has_lr, "a gate 'lr'"),
        Law(
            "linear as declared",
            rule_gates.linear_as_declared,
            rule_gates.declares_something_linear,
            "a part that is declared linear",
        ),
        Law("neutral gates", rule_gates.neutral_gates, has_lr, "a gate 'lr'"),
        Law("clearing gates", rule_gates.clearing_gates, has_lr_and_decay, "the gates 'lr' and 'decay'"),
        Law("forms agree", rule_time.forms_agree),
        Law("block size is speed", rule_time.block_size_is_speed),
        Law("split anywhere", rule_time.split_anywhere),
        Law("decode is prefill", rule_time.decode_is_prefill),
        Law("empty call", rule_time.empty_call),
        Law("causality", rule_time.causality),
        Law("retrieve is reading", rule_time.retrieve_is_reading),
        Law("state is a value", rule_time.state_is_a_value),
        Law("state size", rule_time.state_size),
        Law("rows apart", rule_rows.rows_apart),
        Law("heads apart", rule_rows.heads_apart),
        Law("masked token", rule_rows.masked_token),
        Law("left padding", rule_rows.left_padding),
        Law("documents apart", rule_rows.documents_apart),
        Law("outer gradient", rule_gates.outer_gradient, share=0.3),
        Law("rounding", rule_numbers.rounding),
        Law(
            "single precision",
            rule_numbers.single_precision,
            has_lr_and_decay,
            "the gates 'lr' and 'decay'",
            share=0.1,
        ),
        Law("save and load", rule_numbers.save_and_load, share=0.5),
    ]
)
