"""Every registered rule, mixer and architecture keeps every law that applies to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import memkit
from memkit.mixers.specs import mixer_config
from memkit.registry import exemptions
from memkit.rule import Rule
from memkit.testing import check_mixer, parametrize_with_laws
from memkit.testing.profiles import Profile
from registered import DEEP, DIM, HEADS, RULES, architecture, mixer

EXEMPT = {name: found for name in memkit.names("rule") if (found := exemptions("rule", name))}


@parametrize_with_laws(RULES, exempt=EXEMPT)
def test_rules(component: Rule, law: Callable[[Rule], None]) -> None:
    law(component)


DIVERGES = {"neural_memory": {"finite": "a deep memory without surprise_limit may diverge, as the paper's may"}}


@parametrize_with_laws({name: mixer(name) for name in memkit.names("mixer")}, exempt=DIVERGES)
def test_mixers(component: Any, law: Callable[[Any], None]) -> None:
    law(component)


def test_a_deep_memory_with_a_limit_is_finite_where_one_without_is_not() -> None:
    limited = mixer_config({"name": "neural_memory", "rule": DEEP, "surprise_limit": 0.5}, DIM, HEADS).build
    check_mixer(limited, laws=["finite"], profile=Profile(examples=15, seed=1))
    with pytest.raises(AssertionError, match="not finite"):
        check_mixer(mixer("neural_memory"), laws=["finite"], profile=Profile(examples=15, seed=1))


@parametrize_with_laws({name: architecture(name) for name in memkit.names("architecture")})
def test_architectures(component: Any, law: Callable[[Any], None]) -> None:
    law(component)
