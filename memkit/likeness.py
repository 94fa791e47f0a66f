"""When two values do the same, as far as can be seen without running them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from functools import partial
from types import CellType, FunctionType
from typing import Any
from weakref import WeakValueDictionary

import torch


class Kind:
    """What values have in common that do the same; `one` of them."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __deepcopy__(self, memo: object) -> Kind:
        return self


_KINDS: WeakValueDictionary[Hashable, Kind] = WeakValueDictionary()
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def kind_of(value: object) -> Kind:
    """The kind of a value, which is there as long as somebody holds it."""
    return _KINDS.setdefault(likeness(value), Kind(value))


def likeness(value: object) -> Hashable:
    """Something that is equal for values that do the same.

    Frozen dataclasses are their fields, those left out of comparisons excepted; partial functions and closures are
    their code and what they hold now. Everything else that may change, or that nobody can look into, is like itself
    only.
    """
    return _likeness(value, ())


def _likeness(value: Any, within: tuple[int, ...]) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), repr(value)  # 1, 1.0 and True are equal, and a NaN is not
    if id(value) in within:
        return len(within) - within.index(id(value))  # a function that calls itself
    parts = _parts(value)
    return _Itself(value) if parts is None else tuple(_likeness(part, (*within, id(value))) for part in parts)


def _parts(value: Any) -> list[Any] | None:
    """All that what a value does depends on, its kind first; None where that is the value itself."""
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
    made = vars(kind).get("__dataclass_params__")  # not of a class above it, which knows nothing of this one
    if made is not None and made.frozen:
        return [kind, *(getattr(value, field.name) for field in fields(value) if field.compare)]
    return None


def _held(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing yet
        return []


class _Itself:
    """Equal to what is of the same value: one that is there as long as this is, so that no other takes its place."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
