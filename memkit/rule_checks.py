"""Checks of a rule: combinations of parts and numbers without a meaning, and their errors."""

from __future__ import annotations

from typing import Any

import torch

Rule = Any  # `memkit.rule.Rule` runs these checks, so it cannot be imported


def check_rule(rule: Rule, *, moved: bool, prepared: bool, bent: bool) -> None:
    """Raise `ValueError` for a combination without a meaning.

    moved, prepared, bent: whether the rule has a gradient point, a `prepare` and an `effective` of its own.
    """

    def need(holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"rule {rule.name!r}: {message}")

    for name in ("mini_batch", "update_every", "window", "pairs", "steps"):
        value = getattr(rule, name)
        need(isinstance(value, int) and value >= 1, f"{name} is a count, so it must be an integer >= 1; got {value!r}.")
    need(
        rule.weight.name == "weight" and rule.weight.per == "head",
        f"the gate of each gradient is called 'weight' and is per head; got {rule.weight}.",
    )
    need(rule.read in ("after", "before"), f"read is 'after' or 'before' (a token's own write); got {rule.read!r}.")
    need(
        rule.update_every == 1 or rule.mini_batch == rule.window == 1,
        f"update_every={rule.update_every} takes all its gradients at the last write's weights, so it needs "
        "mini_batch=1 and window=1.",
    )
    need(
        rule.steps % rule.pairs == 0,
        f"'prepare' makes steps={rule.steps} writes of a token's pairs={rule.pairs} pairs, so steps must be a multiple "
        "of pairs.",
    )
    need(
        rule.steps == 1 or rule.mini_batch == rule.update_every == rule.window == 1,
        f"steps={rule.steps} makes several writes of a token, each at the weights that the one before left, so it "
        "needs mini_batch=1, update_every=1 and window=1.",
    )
    _check_gates(rule, need, prepared)
    need(
        not (bent and moved),
        "'effective' already says which weights gradients see, so it cannot be combined with another 'point'. Keep "
        "one of the two.",
    )
    limit = rule.surprise_limit
    need(
        limit is None or limit > 0,
        f"surprise_limit is a gradient norm, so it must be > 0, or None for no limit; got {limit!r}.",
    )


def _check_gates(rule: Rule, need: Any, prepared: bool) -> None:
    """Raise `ValueError` for gates per channel or per pair without a use at the weights."""
    channels = [gate.name for gate in rule.weight_gates if gate.per in ("key", "value")]
    need(
        not channels or rule.memory.linear,
        f"the gates {channels} are per channel, which means something for a single matrix only. Use memory linear(), "
        "or gates per head.",
    )
    pairs = [gate.name for gate in rule.weight_gates if gate.per == "pair"]
    need(
        not pairs or prepared,
        f"the gates {pairs} are per pair, and a write meets one number of each. Use a 'prepare' that makes a step of "
        "every pair.",
    )


def declared_gates(rule: Rule) -> dict[str, Any]:
    """Return every gate of a rule's parts by name; raise `ValueError` if two of them declare one differently."""
    found: dict[str, Any] = {}
    weighted = (rule.weight,) if max(rule.window, rule.update_every) > 1 else ()
    for gate in (*rule.objective.gates, *rule.weight_gates, *rule.prepare_gates, *weighted):
        if found.setdefault(gate.name, gate) != gate:
            raise ValueError(
                f"rule {rule.name!r}: two of its parts declare the gate {gate.name!r} differently: "
                f"{found[gate.name]} and {gate}. Rename one of them."
            )
    return found


def check_point(rule: Rule) -> None:
    """Raise `ValueError` if the gradient point needs a gate or a slot missing in the optimizer and retention."""
    weight = torch.zeros(())
    gates = {gate.name: torch.zeros(()) for gate in rule.weight_gates}
    try:
        rule.point(weight, rule.init_slots(weight), gates)
    except (KeyError, IndexError) as error:
        lacks = f"the gate {error.args[0]!r}" if isinstance(error, KeyError) else "a slot"
        raise ValueError(
            f"rule {rule.name!r}: its gradient point needs {lacks}, which its optimizer {rule.optimizer.name!r} and "
            f"retention {rule.retention.name!r} do not have. Use parts that do (momentum() for at_lookahead, decay() "
            "for at_decayed), or point=at_weights."
        ) from None
