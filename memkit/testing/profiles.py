"""Profiles: the effort of a check.

quick      3 problems per law and component: seconds
default    10, the same in every run: for tests
nightly    10,000 per law, spread over its components
"""

from __future__ import annotations

from dataclasses import dataclass

from memkit.registry import nearest
from memkit.testing.strategies import LONG_STREAM


@dataclass(frozen=True)
class Profile:
    """The effort of a check.

    examples: problems per law and component; an expensive law gets its `share` of them. spread: examples are per law,
    for all components together. seed: the seed of the problems. shrink: reduce a failing problem to a small one.
    stream: tokens of the streams that compare single precision with double. longest: tokens of one more such stream
    per rule, or 0.
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
