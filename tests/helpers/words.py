"""Count words that make English hard to read (what, that, which, where, whose, who), and openings without a noun.

python tests/helpers/words.py            words per 100 of every package, docstrings and comments together, and openings
python tests/helpers/words.py memkit/engine/core    every file below a folder, the worst first
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

HOUSE = Path(__file__).parents[2]
PACKAGES = ("memkit", "architectures", "ablations", "benchmarks")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
COUNTED = {"what", "that", "which", "where", "whose", "who"}
OPENING = re.compile(r"(What|Whether|Where|How|The same)\b")
"""Beginnings of a docstring that put off its subject."""

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(source: str) -> list[str]:
    """Docstrings of a module, its classes and functions, and of the constants in it: a text below an assignment."""
    nodes = list(ast.walk(ast.parse(source)))
    found = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, DOCUMENTED)]
    for body in (node.body for node in nodes if isinstance(node, ast.Module | ast.ClassDef)):
        for before, node in zip(body, body[1:], strict=False):
            match node:
                case ast.Expr(ast.Constant(str(text))) if isinstance(before, ast.Assign | ast.AnnAssign):
                    found.append(text)
    return [text for text in found if text]


def prose(source: str) -> str:
    """Docstrings and comments of a file of Python."""
    marks = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [mark.string for mark in marks if mark.type == tokenize.COMMENT]
    return "\n".join([*docstrings(source), *comments])


def counts(path: Path) -> Counter[str]:
    """By name: all words of a file, those that are counted, and docstrings with an opening that is."""
    source = path.read_text(encoding="utf-8")
    words = [word.lower() for word in WORD.findall(prose(source))]
    openings = sum(OPENING.match(text) is not None for text in docstrings(source))
    return Counter(all=len(words), counted=sum(word in COUNTED for word in words), openings=openings)


def package_of(path: Path, house: Path = HOUSE) -> str:
    """The folder of a file, at most two names deep; so `memkit/engine` holds all of its rooms."""
    return "/".join(path.relative_to(house).parts[:-1][:2])


def totals(house: Path = HOUSE) -> dict[str, Counter[str]]:
    """The counts of every package."""
    total: dict[str, Counter[str]] = {}
    for package in PACKAGES:
        for path in sorted((house / package).rglob("*.py")):
            total.setdefault(package_of(path, house), Counter()).update(counts(path))
    return total


def rate(count: Counter[str]) -> float:
    """Counted words per 100."""
    return 100 * count["counted"] / max(count["all"], 1)


def main() -> None:
    for folder in sys.argv[1:]:
        found = {path: counts(path) for path in Path(folder).rglob("*.py")}
        for path, count in sorted(found.items(), key=lambda item: -item[1]["counted"]):
            print(f"{rate(count):5.1f}  {count['counted']:4d}  {path}")
        for path in found:
            for text in docstrings(path.read_text(encoding="utf-8")):
                if OPENING.match(text):
                    print(f"opening: {path}: {text.splitlines()[0]}")
    if not sys.argv[1:]:
        print(" rate  openings")
        for name, count in sorted(totals().items(), key=lambda item: -rate(item[1])):
            print(f"{rate(count):5.1f}  {count['openings']:8d}  {name}")


if __name__ == "__main__":
    main()
