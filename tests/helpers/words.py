"""Count the words that make English hard to read: what, that, which, where, whose, who.

python tests/helpers/words.py            the rate of every package, docstrings and comments together
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


def prose(path: Path) -> str:
    """Docstrings and comments of a file of Python."""
    source = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    marks = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [mark.string for mark in marks if mark.type == tokenize.COMMENT]
    return "\n".join([*docstrings, *comments])


def counts(path: Path) -> Counter[str]:
    """All words of a file, and those that are counted."""
    words = [word.lower() for word in WORD.findall(prose(path))]
    return Counter(all=len(words), counted=sum(word in COUNTED for word in words))


def package_of(path: Path) -> str:
    """The folder of a file, at most two names deep; so `memkit/engine` holds all of its rooms."""
    return "/".join(path.relative_to(HOUSE).parts[:-1][:2])


def rates() -> dict[str, float]:
    """Counted words per 100, of every package."""
    total: dict[str, Counter[str]] = {}
    for package in PACKAGES:
        for path in sorted((HOUSE / package).rglob("*.py")):
            total.setdefault(package_of(path), Counter()).update(counts(path))
    return {name: 100 * found["counted"] / max(found["all"], 1) for name, found in total.items()}


def main() -> None:
    for folder in sys.argv[1:]:
        found = {path: counts(path) for path in Path(folder).rglob("*.py")}
        for path, count in sorted(found.items(), key=lambda item: -item[1]["counted"]):
            print(f"{100 * count['counted'] / max(count['all'], 1):5.1f}  {count['counted']:4d}  {path}")
    if not sys.argv[1:]:
        for name, rate in sorted(rates().items(), key=lambda item: -item[1]):
            print(f"{rate:5.1f}  {name}")


if __name__ == "__main__":
    main()
