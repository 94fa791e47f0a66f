"""Components as options of mixers: a name, a mapping of name and options, or the object itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Annotated, Any

from pydantic_core import CoreSchema, core_schema

from memkit.mixers.base import Mixer
from memkit.registry import Config, Spec, build, factory
from memkit.rule import Rule


class Built:
    """Marks a type whose instances are options as they are; pydantic does not look inside."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Accept instances."""
        return core_schema.is_instance_schema(source)


RuleSpec = Spec | Annotated[Rule, Built()]
MixerSpec = Spec | Annotated[Mixer, Built()]


def mixer_config(spec: Spec, dim: int, heads: int) -> Config:
    """A mixer inside something wider: `dim` is filled in, and `heads` if the mixer takes it and none is given."""
    config = Config.of("mixer", spec)
    takes = inspect.signature(factory("mixer", config.name)).parameters
    given: dict[str, Any] = {"dim": dim}
    if "heads" in takes and "heads" not in config.options:
        given["heads"] = heads
    return Config.of("mixer", spec, **given)


def build_mixer(spec: MixerSpec, dim: int, heads: int) -> Mixer:
    """Build a mixer inside something wider; one that is built already is taken as it is."""
    return spec if isinstance(spec, Mixer) else mixer_config(spec, dim, heads).build()


def one_each(rule: RuleSpec | list[RuleSpec], count: int, of: str) -> list[RuleSpec]:
    """A rule for each of `count` memories, from one for all or a list; `ValueError` for a list of another length."""
    if not isinstance(rule, list):
        return [rule] * count
    if len(rule) != count:
        raise ValueError(f"got {len(rule)} rules for {count} {of}. Give one for all, or a list of one for each.")
    return rule


def every_so_often(rule: RuleSpec, tokens: int) -> Rule:
    """The rule, writing once in `tokens` tokens; its mini-batch has no meaning then and is left out.

    Raises `ValueError` for a rule that cannot.
    """
    return replace(build("rule", rule), mini_batch=1, update_every=tokens)
