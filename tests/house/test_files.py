"""Rules of the code base on files: short files and functions, and no paths of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import memkit.engine
from source_files import HOUSE, STOREYS, sources

MAX_FILE_LINES = 300
MAX_HEART_LINES = 1000
ENGINE_TEXT = memkit.engine.__doc__ or ""
MAX_FUNCTION_LINES = 50  # its docstring not counted

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|Users|opt)/\w")


def long_functions(house: Path, path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first, documented = node.body[0], ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > MAX_FUNCTION_LINES:
                yield f"{path.relative_to(house)}:{node.lineno}: {node.name} has {lines} lines"


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=HOUSE, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there are no tracked files")
    paths = (HOUSE / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_files_and_functions_are_short() -> None:
    too_long = []
    for path in sources(HOUSE, *STOREYS, "benchmarks"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            too_long.append(f"{path.relative_to(HOUSE)} has {lines} lines")
        too_long.extend(long_functions(HOUSE, path))
    assert too_long == [], "\n".join(too_long)


def test_the_heart_is_read_in_one_sitting() -> None:
    """The files that the engine's docstring names in the order of reading."""
    named = [path.strip() for path in re.findall(r"^    (\S+\.py)  ", ENGINE_TEXT, re.MULTILINE)]
    files = [HOUSE / name if name.startswith("memkit/") else HOUSE / "memkit/engine" / name for name in named]
    assert len(files) == 8
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= MAX_HEART_LINES


def test_a_long_function_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "long.py"
    for lines, found in ((MAX_FUNCTION_LINES - 1, []), (MAX_FUNCTION_LINES, ["long.py:1: f has 51 lines"])):
        docstring = '    """One.\n\n    Two.\n    """\n'
        path.write_text("def f():\n" + docstring + "    x = 1\n" * lines)
        assert list(long_functions(tmp_path, path)) == found


def test_no_file_names_a_machines_folders() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(HOUSE)}:{number}: {line.strip()[:80]}")
    assert found == []


@pytest.mark.parametrize("root", ["work", "home", "tmp"])
def test_a_machines_folder_is_seen(root: str) -> None:
    assert MACHINE_PATH.search(f"open('/{root}/me')")
    assert not MACHINE_PATH.search(f"see example.org/{root}/page and ./{root}/me")
