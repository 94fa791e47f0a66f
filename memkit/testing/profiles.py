"""Profiles: how hard to try.

quick      3 problems a law and component: seconds
default    10, the same ones every time: what tests run
nightly    10,000 a law, spread over the components that it applies to
"""

from __future__ import annotations

from dataclasses import dataclass

from memkit.registry import nearest
from memkit.testing.strategies import LONG_STREAM


@dataclass(frozen=True)
class Profile:
    """How hard to try.

    examples: problems a law and component (an expensive law gets its `share` of them). spread: they are a law's,
    for all components together. seed: where they come from. shrink: whether a failure is made small.
    stream: tokens of the streams on which single precision is held to double. longest: tokens of one more such
    stream for each rule, or 0.
    """

    examples: int
    seed: int = 0
    shrink: bool = True
    spread: bool = False
    stream: int = LONG_STREAM
    longest: int = 0


PROFILES = {
    "quick": Profile(3),
    "default": Profile(10),
    "nightly": Profile(10_000, spread=True, stream=1000, longest=100_000),
}


def profile_named(name: str) -> Profile:
    """The profile of a name; `ValueError` names the nearest one."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}. {nearest(name, PROFILES)}")
    return PROFILES[name]


def profile_of(profile: str | Profile) -> Profile:
    """A profile, given as itself or by its name."""
    return profile_named(profile) if isinstance(profile, str) else profile
