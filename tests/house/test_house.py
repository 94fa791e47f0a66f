"""Rules of the code base on imports: one direction, no circles, and the engine by its face only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from source_files import HOUSE, STOREYS, sources

DATA = ("memkit.rules", "memkit.parts")  # nor does data import the engine through the front door

CHECKERS = ("memkit.testing", "ablations.cli", "ablations.checking", "ablations.display.verdicts")

# (who, what they may not import, who of them may all the same); a name stands for all below it.
FORBIDDEN = [
    ("memkit", "architectures", ()),
    ("memkit", "ablations", ()),
    ("architectures", "ablations", ()),
    *((room, engine, ()) for room in DATA for engine in ("memkit.engine", "memkit.mixers")),
    *((storey, "memkit.testing", CHECKERS) for storey in STOREYS),
    *((storey, "tests", ()) for storey in STOREYS),
]
ENGINE = "memkit.engine"  # others import from its face, and not from the files behind it


def module_name(house: Path, path: Path) -> str:
    parts = path.relative_to(house).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(house: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever in it the import stands."""
    package = module_name(house, path) if path.name == "__init__.py" else module_name(house, path.parent)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                home = ".".join([*above, *([home] if home else [])])
            # `from a import b` may mean the module a.b
            yield from ((node.lineno, f"{home}.{alias.name}") for alias in node.names)


def wrong_imports(house: Path) -> list[str]:
    found = []
    for path in sources(house, *STOREYS):
        module = module_name(house, path)
        for line, name in imports(house, path):
            place = f"{path.relative_to(house)}:{line}: {module} imports {name}"
            for who, what, allowed in FORBIDDEN:
                free = any(within(module, room) for room in allowed)
                if within(module, who) and within(name, what) and not free:
                    found.append(place)
            at_the_door = name == "memkit" or (name.count(".") == 1 and is_front_door(house, name))
            if at_the_door and any(within(module, room) for room in DATA):
                found.append(place)
    return found


def circles(house: Path, *folders: str) -> list[list[str]]:
    """All sets of modules that import each other in a circle, late imports and those for types alone included.

    The strongly connected components of the graph of imports that have two modules or more, or one that imports
    itself; they are found by the way back, since a house has some hundred modules only.
    """
    paths = {module_name(house, path): path for path in sources(house, *folders)}
    uses: dict[str, set[str]] = {}
    for module, path in paths.items():
        # `from a import b` uses the module a.b, or else the file of a
        named = (name if name in paths else name.rpartition(".")[0] for _, name in imports(house, path))
        uses[module] = {name for name in named if name in paths}
    reach = {module: reached(module, uses) for module in paths}
    rings = {frozenset(other for other in reach[module] if module in reach[other]) for module in paths}
    return sorted(sorted(ring) for ring in rings if ring)


def reached(module: str, uses: dict[str, set[str]]) -> set[str]:
    """All modules that a module imports, and those that they import in turn."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = uses[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def imports_of_tests(house: Path) -> list[str]:
    """Imports of test files, and of conftest.py, by others: common parts belong into tests/helpers."""
    files = list(sources(house, "tests"))
    tests = {path.stem for path in files if path.name.startswith("test_")} | {"conftest"}
    return [
        f"{path.relative_to(house)}:{line}: {name}"
        for path in files
        for line, name in imports(house, path)
        if tests & set(name.split("."))
    ]


def past_the_face(house: Path) -> dict[str, list[str]]:
    """By module outside of the engine: all that it imports from files behind `memkit/engine/__init__.py`."""
    face, found = names_in_all(house / "memkit/engine/__init__.py"), {}
    for path in sources(house, *STOREYS, "benchmarks"):
        module = module_name(house, path)
        names = [] if within(module, ENGINE) else [name for _, name in imports(house, path)]
        behind = [name for name in names if name.startswith(ENGINE + ".") and name[len(ENGINE) + 1 :] not in face]
        if behind:
            found[module] = behind
    return found


def names_in_all(path: Path) -> set[str]:
    """The names in `__all__` of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise ValueError(f"{path} has no __all__")


def is_front_door(house: Path, name: str) -> bool:
    """Whether `memkit.x` is something that the package hands out, and no module."""
    package, last = name.split(".")
    folder = house / package
    return package == "memkit" and not ((folder / f"{last}.py").exists() or (folder / last).is_dir())


def test_imports_run_one_way() -> None:
    assert wrong_imports(HOUSE) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("memkit/state.py", "import architectures.mac", True),
        ("memkit/mixers/a.py", "def f():\n    from ablations import grid", True),
        ("memkit/mixers/a.py", "from memkit.engine import memorize", False),
        ("architectures/mac.py", "from ablations.tasks import text", True),
        ("architectures/mac.py", "import memkit", False),
        ("ablations/train.py", "import architectures", False),
        ("memkit/rules/titans.py", "from memkit.rule import Rule", False),
        ("memkit/rules/titans.py", "from memkit import rule", False),
        ("memkit/rules/titans.py", "from memkit.engine.forms.scan import scan", True),
        ("memkit/rules/titans.py", "from memkit import engine", True),
        ("memkit/rules/titans.py", "from .. import engine", True),
        ("memkit/rules/titans.py", "from ..mixers import base", True),
        ("memkit/rules/__init__.py", "from . import titans", False),
        ("memkit/rules/__init__.py", "from ..engine import scan", True),
        ("memkit/parts/loss.py", "if True:\n    import memkit.mixers.base as b", True),
        ("memkit/parts/loss.py", "from memkit import memorize", True),
        ("memkit/parts/loss.py", "import memkit", True),
        ("memkit/parts/loss.py", "import memkit_extra", False),
        ("memkit/state.py", "from memkit.testing import tolerance", True),
        ("memkit/testing/laws.py", "from memkit.testing import tolerance", False),
        ("ablations/cli/check.py", "import memkit.testing", False),
        ("ablations/display/runs.py", "import memkit.testing", True),
        ("ablations/display/verdicts.py", "import memkit.testing", False),
        ("ablations/checking/work.py", "import memkit.testing", False),
        ("ablations/report.py", "import memkit.testing", True),
        ("ablations/cli_more.py", "import memkit.testing", True),
        ("memkit/state.py", "from tests import running_mean", True),
    ],
)
def test_a_wrong_import_is_seen(file: str, line: str, wrong: bool, tmp_path: Path) -> None:
    for room in ("rules", "parts", "engine", "mixers", "testing"):
        (tmp_path / "memkit" / room).mkdir(parents=True)
    (tmp_path / "memkit/rule.py").touch()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import torch\n\n{line}\n")
    assert bool(wrong_imports(tmp_path)) == wrong


def test_imports_have_no_circle() -> None:
    assert circles(HOUSE, *STOREYS, "benchmarks") == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "ablations/room").mkdir(parents=True)
    for name, text in {
        "__init__": "from ablations.a import x",
        "a": "if TYPE_CHECKING:\n    from ablations import b",
        "b": "def f():\n    from ablations.c import x",
        "c": "import ablations.a\nimport ablations.d",
        "d": "import ablations.room.e\nimport torch",
        "room/e": "from . import f",
        "room/f": "from ..room.e import x",
        "room/g": "from .f import x",
    }.items():
        (tmp_path / f"ablations/{name}.py").write_text(text)
    found = [["ablations.a", "ablations.b", "ablations.c"], ["ablations.room.e", "ablations.room.f"]]
    assert circles(tmp_path, "ablations") == found


def test_no_test_file_imports_another() -> None:
    assert imports_of_tests(HOUSE) == []


@pytest.mark.parametrize(
    "line",
    [
        "from test_b import everything",
        "import test_b",
        "def f():\n    from tests.laws.test_b import everything",
        "from tests.laws import test_b",
        "from conftest import packages",
        "from helpers_of_tests import everything",
    ],
)
@pytest.mark.parametrize("file", ["laws/test_a.py", "helpers/a.py"])
def test_a_test_file_that_imports_another_is_seen(file: str, line: str, tmp_path: Path) -> None:
    for name, text in {"laws/test_b.py": "", file: line}.items():
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    assert bool(imports_of_tests(tmp_path)) == ("helpers_of_tests" not in line)


def test_others_import_from_the_engines_face() -> None:
    assert past_the_face(HOUSE) == {}


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("memkit/mixers/a.py", "from memkit.engine.core.tape import record", True),
        ("memkit/mixers/a.py", "def f():\n    from memkit.engine import plan", True),
        ("memkit/testing/a.py", "from ..engine.plan import choose", True),
        ("architectures/a.py", "import memkit.engine.plan", True),
        ("ablations/a.py", "if TYPE_CHECKING:\n    from memkit.engine.plan import Form", True),
        ("benchmarks/a.py", "import memkit.engine.plan", True),
        ("memkit/mixers/a.py", "from memkit.engine import memorize", False),  # the function, and no more its file
        ("memkit/mixers/a.py", "from memkit import engine", False),
        ("memkit/mixers/a.py", "from memkit.engines.plan import choose", False),
        ("memkit/engine/a.py", "from memkit.engine.plan import choose", False),
    ],
)
def test_an_import_past_the_face_is_seen(file: str, line: str, wrong: bool, tmp_path: Path) -> None:
    for name, text in {"memkit/engine/__init__.py": '__all__ = ["memorize"]', file: line}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert bool(past_the_face(tmp_path)) == wrong
