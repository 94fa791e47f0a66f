"""Strict settings from mappings and from `key=value` pairs: no unknown keys, no silent conversions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import pydantic

from memkit.registry import nearest
from memkit.strict_yaml import load_yaml

Model = TypeVar("Model", bound="Settings")


class Settings(pydantic.BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversions; `parse` reads them."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


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
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        *path, last = key.split(".")
        if not equals or not all([*path, last]):
            raise ValueError(f"an option is key=value, such as dim=64 or rule.depth=1; got {pair!r}.")
        inside = options
        for part in path:
            inside = inside.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ValueError(
                    f"the option {pair!r} reaches inside {part!r}, which another option sets to {inside!r}."
                )
        if last in inside:
            raise ValueError(f"the option {key!r} is given twice.")
        inside[last] = load_yaml(value, f"the option {pair!r}")
    return options


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
    """The known keys of the settings at a path inside a model."""
    for part in path:
        kinds = [model.model_fields[part].annotation] if part in model.model_fields else []
        inner = [k for kind in kinds for k in (kind, *getattr(kind, "__args__", ())) if isinstance(k, type)]
        model = next((k for k in inner if issubclass(k, Settings)), model)
    return list(model.model_fields)
