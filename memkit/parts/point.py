"""Gradient points by name: the weights to take a write's gradient at."""

from __future__ import annotations

from memkit.registry import register
from memkit.rule import Point, at_decayed, at_lookahead, at_weights


@register("point", "weights")
def weights() -> Point:
    """The weight itself, as in plain gradient descent."""
    return at_weights


@register("point", "decayed")
def decayed() -> Point:
    """(1 - decay) M: forget first, then be surprised (Gated DeltaNet); needs a retention with the gate decay."""
    return at_decayed


@register("point", "lookahead")
def lookahead() -> Point:
    """M + momentum S: the weight after the momentum alone (Nesterov); needs the optimizer momentum."""
    return at_lookahead
