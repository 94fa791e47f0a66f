"""YAML without surprises: `3e-3` is a number, and a key given twice is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`, which may be given several times
FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")
"""Floats of YAML 1.2 with an exponent; YAML 1.1 reads `3e-3` and `1.5e3` as text."""


class _Loader(yaml.SafeLoader):
    """Reader of YAML 1.1 with the floats of YAML 1.2; a key given twice is an error."""


class _Dumper(yaml.SafeDumper):
    """Writer for `_Loader`: quotes each text that would be read as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        if key_node.tag == MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            break  # refused below, by the loader itself
        if key in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def load_yaml(text: str, where: str) -> Any:
    """Read YAML.

    Raises `ValueError`, which names `where`, for text that is not YAML or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {_reason(error)}.") from None


def dump_yaml(data: Any, *, width: int = 80) -> str:
    """Write plain data as YAML for `load_yaml`, keys in their order.

    Raises `yaml.representer.RepresenterError` for an object that is not plain data.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=width)


def _reason(error: yaml.YAMLError) -> str:
    """The fault with its line and column, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    told = ((error.context, error.context_mark), (error.problem, error.problem_mark))
    places = [(text, f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "") for text, mark in told]
    return ": ".join(f"{text}{place}" for text, place in places if text)
