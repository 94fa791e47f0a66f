"""A structural key: equal for two values that compute the same, as far as can be seen without running them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from functools import partial
from types import CellType, FunctionType
from typing import Any
from weakref import WeakValueDictionary

import torch


class CacheKey:
    """The identity shared by all values with one key; `one` of them."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __deepcopy__(self, memo: object) -> CacheKey:
        return self


_KEYS: WeakValueDictionary[Hashable, CacheKey] = WeakValueDictionary()
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def cache_key(value: object) -> CacheKey:
    """Return the one key of all values equal to this; it lives as long as somebody holds it."""
    return _KEYS.setdefault(structural_key(value), CacheKey(value))


def structural_key(value: object) -> Hashable:
    """Return the key of a value: equal keys compute the same.

    The key of a frozen dataclass is its compared fields; of a partial function or a closure its code and present
    contents. Everything mutable or opaque equals only itself.
    """
    return _structural_key(value, ())


def _structural_key(value: Any, within: tuple[int, ...]) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), repr(value)  # 1, 1.0 and True are equal, and a NaN is not
    if id(value) in within:
        return len(within) - within.index(id(value))  # a recursive function
    parts = _parts(value)
    return _Identity(value) if parts is None else tuple(_structural_key(part, (*within, id(value))) for part in parts)


def _parts(value: Any) -> list[Any] | None:
    """Return all parts of a value that its computation depends on, its type first; None for the value itself."""
    kind = type(value)
    if kind is tuple:
        return [kind, *value]
    if kind is partial:
        return [kind, value.func, value.args, *value.keywords.items()]
    if kind is FunctionType and value.__closure__:
        names = tuple((value.__kwdefaults__ or {}).items())
        return [value.__code__, value.__globals__, value.__defaults__, names, *value.__closure__]
    if kind is CellType:
        return [kind, *_held(value)]
    made = vars(kind).get("__dataclass_params__")  # not inherited from a base class, with fewer fields
    if made is not None and made.frozen:
        return [kind, *(getattr(value, field.name) for field in fields(value) if field.compare)]
    return None


def _held(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing yet
        return []


class _Identity:
    """An identity as a key: it holds the value, so that no other can take its id."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
