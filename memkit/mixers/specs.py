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
    """A mark for types with instances as options, which pydantic does not look into."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Accept instances."""
        return core_schema.is_instance_schema(source)


RuleSpec = Spec | Annotated[Rule, Built()]
MixerSpec = Spec | Annotated[Mixer, Built()]


def mixer_config(spec: Spec, dim: int, heads: int) -> Config:
    """Return the config of a mixer inside a model: with `dim`, and with `heads` if it takes them and none are given."""
    config = Config.of("mixer", spec)
    takes = inspect.signature(factory("mixer", config.name)).parameters
    given: dict[str, Any] = {"dim": dim}
    if "heads" in takes and "heads" not in config.options:
        given["heads"] = heads
    return Config.of("mixer", spec, **given)


def build_mixer(spec: MixerSpec, dim: int, heads: int) -> Mixer:
    """Build a mixer inside a model; return one that is already built."""
    return spec if isinstance(spec, Mixer) else mixer_config(spec, dim, heads).build()


def one_each(rule: RuleSpec | list[RuleSpec], count: int, of: str) -> list[RuleSpec]:
    """Return a rule for each of `count` memories, from one for all or a list; raise `ValueError` for another length."""
    if not isinstance(rule, list):
        return [rule] * count
    if len(rule) != count:
        raise ValueError(f"got {len(rule)} rules for {count} {of}. Give one for all, or a list of one for each.")
    return rule


def every_so_often(rule: RuleSpec, tokens: int) -> Rule:
    """Return the rule with one write per `tokens` tokens, without its mini-batch, which has no meaning then.

    Raises `ValueError` for a rule that cannot.
    """
    return replace(build("rule", rule), mini_batch=1, update_every=tokens)
