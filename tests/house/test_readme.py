"""What the README shows runs: its Python, its files as files, and its commands as far as their options."""

from __future__ import annotations

import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console

import memkit
import memkit.testing
from ablations.cli import app, main
from ablations.grid import read_grid
from ablations.listing import print_rules
from memkit import registry

HOUSE = Path(__file__).parents[2]
README = (HOUSE / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./-]+\.(?:py|yaml))\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
TARGET = re.compile(r"^(\w+):.*##", re.MULTILINE)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, str]]]:
    """The blocks, language and text; those that name a file in their first line lie in this folder."""
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(README)
    for _, text in blocks:
        name = NAMED.match(text)
        if name:
            Path(name[1]).write_text(text)
    with registry.scratch():
        yield blocks


def test_the_python_runs(examples: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("check_rule", "check_mixer"):
        small = functools.partial(getattr(memkit.testing, check), profile="quick")
        monkeypatch.setattr(memkit.testing, check, small)
    names: dict[str, Any] = {"__name__": "readme"}
    found = [text for language, text in examples if language == "python"]
    assert len(found) >= 2
    for text in found:
        exec(compile(text, "README.md", "exec"), names)


def test_the_grids_are_grids(examples: list[tuple[str, str]]) -> None:
    found = [NAMED.match(text) for language, text in examples if language == "yaml"]
    assert found
    for name in found:
        assert name is not None, "a grid of the README needs its file's name in the first line"
        read_grid(name[1])


def test_the_commands_are_commands(examples: list[tuple[str, str]]) -> None:
    commands, targets, seen = typer.main.get_command(app), set(TARGET.findall((HOUSE / "Makefile").read_text())), set()
    for line in (line for language, text in examples if language in ("sh", "console") for line in text.splitlines()):
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line
        elif words[:1] == ["memkit"]:
            commands.commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
        seen.update(words[:1])
    assert seen >= {"make", "memkit"}


def test_what_it_links_to_is_there() -> None:
    assert [path for path in LINK.findall(README) if not (HOUSE / path).exists()] == []


def test_the_rule_keeps_the_laws(examples: list[tuple[str, str]]) -> None:
    assert main(["check", "my_rule.py", "--profile", "quick"]) == 0


def test_the_table_of_rules_is_the_generated_one() -> None:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_rules(console)
    generated = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    (shown,) = (text for language, text in BLOCK.findall(README) if language == "text")
    header, _, *rows = (line.split() for line in shown.splitlines())
    assert header in generated
    assert [row[0] for row in rows] == memkit.names("rule")
    assert all(row in generated for row in rows)
