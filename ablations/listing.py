"""`memkit list`: what can be built, straight from the registry."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memkit.registry import factory, kinds, names


def print_kinds(console: Console) -> None:
    """Every kind and the names that it has."""
    table = Table("kind", "names", header_style="bold")
    for kind in kinds():
        table.add_row(f"[bold]{kind}[/bold]", escape(", ".join(names(kind))))
    console.print(table)
    hint = "memkit list KIND tells what each is; memkit list KIND NAME its options."
    console.print(hint, style="dim", highlight=False)


def print_kind(kind: str, console: Console) -> None:
    """Every name of a kind with the first line of its docstring; `ValueError` for an unknown kind."""
    table = Table(kind, "", header_style="bold")
    for name in names(kind):
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(_documentation(factory(kind, name)).partition("\n")[0]))
    console.print(table)


def print_component(kind: str, name: str, console: Console) -> None:
    """One component: what it is, and its options; `ValueError` for an unknown one."""
    made_by = factory(kind, name)
    console.print(f"[bold]{kind} {escape(name)}[/bold]\n")
    console.print(escape(_documentation(made_by)), highlight=False)
    parameters = inspect.signature(made_by).parameters.values()
    if not parameters:
        return
    hints = _hints(made_by)
    table = Table("option", "default", "type", header_style="bold")
    for parameter in parameters:
        default = parameter.default
        shown = f"{default:.4g}" if isinstance(default, float) else repr(default)
        shown = "[yellow]required[/yellow]" if default is parameter.empty else escape(shown)
        table.add_row(f"[bold]{parameter.name}[/bold]", shown, escape(_words(hints.get(parameter.name, ""))))
    console.print()
    console.print(table)


def _documentation(made_by: Callable[..., Any]) -> str:
    return inspect.getdoc(made_by) or "(no description)"


def _hints(made_by: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(made_by.__init__ if inspect.isclass(made_by) else made_by)


def _words(hint: Any) -> str:
    """A type as one writes it: `str | dict | Rule`, `'english' | 'code'`, `list[str | dict]`."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_words, inside))
    if origin is typing.Literal:
        return " | ".join(map(repr, inside))
    if hint is types.NoneType:
        return "None"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"list[{_words(inside[0])}]" if origin is list else name
