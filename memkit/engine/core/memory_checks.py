"""Errors for memories that do not use each of their weights once, in words."""

from __future__ import annotations

from collections.abc import Collection

from memkit.rule import Rule


def check_twice(rule: Rule, name: str, used: Collection[str]) -> None:
    """Raise `ValueError` when a memory uses a weight again."""
    if name in used:
        raise ValueError(f"rule {rule.name!r}: its memory uses the weight {name!r} twice; each is used once.")


def check_unused(rule: Rule, names: Collection[str], used: Collection[str]) -> None:
    """Raise `ValueError` when a memory leaves weights out."""
    unused = sorted(set(names) - set(used))
    if unused:
        raise ValueError(f"rule {rule.name!r}: its memory never uses the weights {unused}; each is used once.")


def check_cut_off(rule: Rule, names: Collection[str], reached: Collection[str]) -> None:
    """Raise `ValueError` when the loss does not depend on some weights."""
    cut_off = [name for name in names if name not in reached]
    if cut_off:
        raise ValueError(
            f"rule {rule.name!r}: its loss does not depend on the weights {cut_off}, so no write would change them. "
            "Look for .detach(), .data, no_grad or a result that is thrown away in its memory or objective."
        )
