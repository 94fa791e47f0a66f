"""Strict reading of what people write by hand: YAML without surprises, settings without unknown keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pydantic
import yaml

from memkit.registry import nearest

Model = TypeVar("Model", bound="Settings")


class Settings(pydantic.BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversions; read them with `parse`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `3e-3` is a number and a key that is given twice is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    held: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in held:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
            )
        held[key] = loader.construct_object(value_node, deep=True)
    return held


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(  # YAML 1.2 floats; 1.1 wants a dot and reads 3e-3 as text
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_yaml(text: str, where: str) -> Any:
    """Read YAML; `ValueError` names the place when it is not YAML or gives a key twice."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {_fault(error)}.") from None


def _fault(error: yaml.YAMLError) -> str:
    """What is wrong and in which line, in one line and without a picture of the place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    told = ((error.context, error.context_mark), (error.problem, error.problem_mark))
    places = [(what, f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "") for what, mark in told]
    return ": ".join(f"{what}{place}" for what, place in places if what)


def parse(model: type[Model], data: Any, where: str) -> Model:
    """Read settings from a mapping; `ValueError` lists every fault, unknown keys with the nearest known one."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping of {', '.join(model.model_fields)}; got {data!r}.")
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        raise ValueError("\n".join(_reason(model, item, where) for item in error.errors())) from None


def assignments(pairs: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` pairs as nested options: values are YAML, dots in keys reach inside mappings."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        *path, last = key.split(".")
        if not equals or not all([*path, last]):
            raise ValueError(f"an option is key=value, such as dim=64 or rule.depth=1; got {pair!r}.")
        inside = found
        for part in path:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ValueError(
                    f"the option {pair!r} reaches inside {part!r}, which another option sets to {inside!r}."
                )
        if last in inside:
            raise ValueError(f"the option {key!r} is given twice.")
        inside[last] = load_yaml(value, f"the option {pair!r}")
    return found


def _reason(model: type[Settings], item: Any, where: str) -> str:
    *path, last = item["loc"]
    if item["type"] == "extra_forbidden":
        place = ".".join(map(str, [where, *path]))
        return f"{place} has no key {last!r}. {nearest(str(last), _keys(model, path))}"
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return f"{where} needs the key {place!r}."
    reason = item["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {place} = {item['input']!r} does not fit: {reason}."


def _keys(model: type[Settings], path: list[Any]) -> list[str]:
    """The known keys of the settings that lie at a path inside a model."""
    for part in path:
        kinds = [model.model_fields[part].annotation] if part in model.model_fields else []
        inner = [k for kind in kinds for k in (kind, *getattr(kind, "__args__", ())) if isinstance(k, type)]
        model = next((k for k in inner if issubclass(k, Settings)), model)
    return list(model.model_fields)
