"""The README: its Python runs, its files are written, and its commands parse."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ablations.cli import app
from ablations.grid import read_grid
from memkit import registry
from pages import BLOCK, HOUSE, run_console

README = (HOUSE / "README.md").read_text(encoding="utf-8")
NAMED = re.compile(r"# ([\w./-]+\.(?:py|yaml))\b")
TARGET = re.compile(r"^(\w+):.*##", re.MULTILINE)
MOST_LINES = 105


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


def test_the_python_runs(examples: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    found = [text for language, text in examples if language == "python"]
    programs = [text for text in found if not NAMED.match(text)]  # files are there to be imported
    assert len(found) > len(programs) > 0
    try:
        for text in programs:
            exec(compile(text, "README.md", "exec"), names)
    finally:
        sys.modules.pop("forgetful", None)
    assert names["ids"].shape == (2, 29)


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


def test_it_begins_with_make_demo_and_make_test() -> None:
    lines = [
        line for language, text in BLOCK.findall(README) if language in ("sh", "console") for line in text.splitlines()
    ]
    assert [line.split("#")[0].split() for line in lines[:2]] == [["make", "demo"], ["make", "test"]]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_what_the_commands_print_is_what_it_shows(
    examples: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    consoles = [text for language, text in examples if language == "console"]
    assert consoles
    for text in consoles:
        run_console(text, capfd)
