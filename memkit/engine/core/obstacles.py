"""Reasons why the update of a rule cannot be unrolled, each to follow "because"."""

from __future__ import annotations

from memkit.rule import Rule, identity


def not_linear(rule: Rule) -> list[str]:
    """Reasons against every form that unrolls the update with scalars."""
    found = []
    for part, kind in ((rule.optimizer, "optimizer"), (rule.retention, "retention")):
        if not part.linear:
            found.append(f"its {kind} {part.name!r} is not linear in the gradient")
    if rule.optimizer.direction is not None:
        found.append(f"its optimizer {rule.optimizer.name!r} turns each step in a way that is not linear")
    if rule.update_every > 1:
        found.append(f"it writes once every {rule.update_every} tokens")
    channels = gates_per(rule, "value")
    if channels:
        found.append(f"its gates {channels} are per value channel")
    channels = gates_per(rule, "key")
    if channels and rule.window > 1:
        found.append(f"its gates {channels} are per key channel, and its writes use {rule.window} gradients")
    return found


def moving_weights(rule: Rule) -> list[str]:
    """Reasons against forms with gradients at weights that change inside of a block."""
    found = not_linear(rule)
    if rule.effective is not identity:
        found.append("its effective weights are not linear in the raw ones")
    if rule.window > 1:
        found.append(f"each write uses {rule.window} gradients at weights of its own")
    return found


def per_key_channel(rule: Rule) -> list[str]:
    """Reason against forms for gates per head only."""
    channels = gates_per(rule, "key")
    return [f"its gates {channels} are per key channel"] if channels else []


def gates_per(rule: Rule, axis: str) -> list[str]:
    """Names of the gates at the weights with this axis."""
    return [gate.name for gate in rule.weight_gates if gate.per == axis]


def online(rule: Rule) -> bool:
    """True if every token's gradient sees the write of the token before."""
    return rule.sees_weights and rule.mini_batch == 1
