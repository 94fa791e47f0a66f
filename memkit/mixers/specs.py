"""Components as options of mixers: a name, a mapping of name and options, or the object itself."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from pydantic_core import CoreSchema, core_schema

from memkit.mixers.base import Mixer
from memkit.registry import Config, Spec, factory
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
