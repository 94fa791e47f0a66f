"""Problems as one line of text, to type in again: only the differences from the smallest problem."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, TypeVar

from memkit.registry import nearest

Problem = TypeVar("Problem")


def line(problem: Any) -> str:
    """ "tokens=3, seed=7": the fields of a problem that differ from the smallest one."""
    fields = [field for field in dataclasses.fields(problem) if field.repr]
    changed = {
        field.name: getattr(problem, field.name) for field in fields if getattr(problem, field.name) != field.default
    }
    return ", ".join(f"{name}={value!r}" for name, value in changed.items())


def read_line(kind: type[Problem], text: str) -> Problem:
    """Read the problem of a line; `ValueError` for other text, unknown fields and values of a wrong type."""
    fields = {field.name: field for field in dataclasses.fields(kind) if field.repr}  # type: ignore[arg-type]
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not keywords alone")
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"an example is written like 'tokens=3, seed=7'; got {text!r}.") from None
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"an example has no field {name!r}. {nearest(name, fields)}")
        if type(value) is not type(fields[name].default):
            raise ValueError(f"the example's {name} is like {fields[name].default!r}; got {value!r}.")
    return kind(**values)


class Replayable:
    """Base of problems, shown as the call that makes them: only the fields that differ from the smallest problem."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({line(self)})"
