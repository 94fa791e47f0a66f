"""`memkit list`: all components of the registry."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memkit import explain
from memkit.registry import build, factory, hints, kinds, names
from memkit.rule import Rule, identity

LEGEND = (
    "MLP-n: a perceptron of n layers; LN: layer norm; phi_n: polynomial features of degree n; GD: gradient descent. "
    "Retention 'a, b': kept as a, used as b. Source: arXiv."
)
WIDE = 100
"""Columns from which the table of rules gets a line below its head and wider gaps."""
ARXIV = re.compile(r"arXiv[ :]?(\d{4}\.\d{4,5})")


def print_kinds(console: Console) -> None:
    """Print every kind with its names, and the table of rules."""
    table = Table("kind", "names", header_style="bold")
    for kind in kinds():
        table.add_row(f"[bold]{kind}[/bold]", escape(", ".join(names(kind))))
    console.print(table)
    console.print()
    print_rules(console)
    hint = "memkit list KIND describes each component of a kind, memkit list KIND NAME one with its options."
    console.print(hint, style="dim", highlight=False)


def print_rules(console: Console) -> None:
    """Print every rule with its defaults: its four choices, its form, and its paper."""
    lines = box.SIMPLE_HEAD if console.width >= WIDE else None
    table = Table(box=lines, header_style="bold", show_edge=False, padding=(0, 1, 0, 0))
    for column in ("rule", "memory", "objective", "retention", "optimizer", "form", "source"):
        table.add_column(column, no_wrap=column in ("rule", "form", "source"))
    for name in names("rule"):
        table.add_row(f"[bold]{escape(name)}[/bold]", *map(escape, rule_row(name)))
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)


def rule_row(name: str) -> list[str]:
    """Return memory, objective, retention, optimizer, form and source of a rule built with its defaults."""
    made_by = factory("rule", name)
    try:
        rule: Rule = build("rule", name)
    except ValueError:  # a third party's rule may have options without a default
        return ["?"] * 5 + [source(made_by)]
    parts = [rule.objective.name, _retention(rule), _optimizer(rule)]
    form = explain(rule).partition(":")[0]
    return [_name(rule.memory), *(part.replace("_", " ") for part in parts), form, source(made_by)]


def source(made_by: Callable[..., Any]) -> str:
    """Return the first arXiv number in a factory's summary, its file's docstring or its notes on options."""
    summary, _, options = _documentation(made_by).partition("\n\n")
    found = ARXIV.search(f"{summary}\n{inspect.getdoc(sys.modules.get(made_by.__module__))}\n{options}")
    return found.group(1) if found else ""


def _retention(rule: Rule) -> str:
    """The retention, "by channel" if it has channel gates, and the map from kept to used weights."""
    kept = rule.retention.name + " by channel" * any(gate.per in ("key", "value") for gate in rule.retention.gates)
    if rule.effective is identity:
        return kept
    bent = _name(rule.effective)
    return bent if rule.retention.name == "none" else f"{kept}, {bent}"


def _optimizer(rule: Rule) -> str:
    """The optimizer, its steps per token, and the number of tokens whose gradients it gathers."""
    name = "GD" if rule.optimizer.name == "gradient_descent" else rule.optimizer.name
    if rule.steps > 1:
        return f"{name}, {rule.steps} steps"
    if rule.window > 1:
        return f"{name}, window {rule.window}"
    return f"{name}, every {rule.update_every}" if rule.update_every > 1 else name


def _name(part: object) -> str:
    """A part's own name, or its function's or class's."""
    return getattr(part, "name", None) or getattr(part, "__name__", None) or type(part).__name__


def print_kind(kind: str, console: Console) -> None:
    """Print every name of a kind with the first line of its docstring; `ValueError` for an unknown kind."""
    table = Table(kind, "description", header_style="bold")
    for name in names(kind):
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(_documentation(factory(kind, name)).partition("\n")[0]))
    console.print(table)
    if kind == "rule":
        console.print()
        print_rules(console)


def print_component(kind: str, name: str, console: Console) -> None:
    """Print one component: its description and its options; `ValueError` for an unknown one."""
    made_by = factory(kind, name)
    console.print(f"[bold]{kind} {escape(name)}[/bold]\n")
    console.print(escape(_flowing(_documentation(made_by))), highlight=False)
    if kind == "rule":
        _print_rule(made_by, name, console)
    if kind == "benchmark":  # the command gives its argument
        console.print(f"\nmemkit bench {escape(name)}", style="dim", highlight=False)
        return
    parameters = inspect.signature(made_by).parameters.values()
    if not parameters:
        return
    types_of = hints(made_by)
    table = Table("option", "default", "type", header_style="bold")
    for parameter in parameters:
        default = parameter.default
        shown = f"{default:.4g}" if isinstance(default, float) else repr(default)
        shown = "[yellow]required[/yellow]" if default is parameter.empty else escape(shown)
        table.add_row(f"[bold]{parameter.name}[/bold]", shown, escape(_words(types_of.get(parameter.name, ""))))
    console.print()
    console.print(table)


def _print_rule(made_by: Callable[..., Any], name: str, console: Console) -> None:
    """Print a rule's equations, from the docstring of its file, and its form."""
    equations = inspect.getdoc(sys.modules[made_by.__module__])
    if equations:
        console.print(f"\n{escape(equations)}", highlight=False, soft_wrap=True)
    try:
        console.print(f"\n{escape(explain(build('rule', name)))}", style="dim", highlight=False)
    except ValueError:
        return


def _flowing(text: str) -> str:
    """Join the lines of each paragraph, for any width; a line `option: description` stays a line."""
    return re.sub(r"(?<=\S)\n(?![\s-])(?!\w+(?:, \w+)*: )", " ", text)


def _documentation(made_by: Callable[..., Any]) -> str:
    return inspect.getdoc(made_by) or "(no description)"


def _words(hint: Any) -> str:
    """Write a type as in source code: `str | dict | Rule`, `'english' | 'code'`, `list[str | dict]`."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_words, inside))
    if origin is typing.Literal:
        return " | ".join(map(repr, inside))
    if origin is typing.Annotated:
        return _words(inside[0])
    if hint is types.NoneType:
        return "None"
    name = getattr(origin or hint, "__name__", str(hint))
    return f"list[{_words(inside[0])}]" if origin is list else name
