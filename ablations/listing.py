"""`memkit list`: what can be built, straight from the registry."""

from __future__ import annotations

import inspect
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
    table = Table("option", "default", "type", header_style="bold")
    for parameter in parameters:
        required = parameter.default is parameter.empty
        default = "[yellow]required[/yellow]" if required else escape(repr(parameter.default))
        table.add_row(f"[bold]{parameter.name}[/bold]", default, escape(_type(parameter)))
    console.print()
    console.print(table)


def _documentation(made_by: Callable[..., Any]) -> str:
    return inspect.getdoc(made_by) or "(no description)"


def _type(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
