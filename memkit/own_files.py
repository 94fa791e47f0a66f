"""Components in a user's own Python file: importing it, and saying in words where it goes wrong."""

from __future__ import annotations

import hashlib
import linecache
import site
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch

from memkit.registry import discover, forget, registered_by

_ELSEWHERE = tuple(
    str(Path(folder).resolve())
    for folder in {
        *site.getsitepackages(),
        *sysconfig.get_paths().values(),
        str(Path(torch.__file__).parent),
        str(Path(__file__).parent),
    }
    if Path(folder) != Path(sys.prefix)  # that is above a user's own folders, too
)
"""Where code lies that is not the user's."""
_imported: dict[str, tuple[str, list[tuple[str, str]]]] = {}
"""Module name -> what was in the file, and what it registered."""


def import_file(path: str | Path) -> list[tuple[str, str]]:
    """Run a Python file and return kind and name of everything that it registered; an unchanged one is run once.

    Raises `ValueError`, with the line of the file, when it does not exist or does not import.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    discover()  # what is installed comes first: a file that takes one of its names is told so
    name, found = _module_name(path), digest(path)
    if _imported.get(name) == (found, registered_by(name)):
        return registered_by(name)
    forget(name)
    linecache.checkcache(str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as for `python file.py`: what lies beside it can be imported
    try:
        # Compiled here and not by the import system, whose cache misses a change within a second.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        forget(name)
        del sys.modules[name]
        raise ValueError(f"{path.name} does not import: {in_words(error, path)}") from None
    finally:
        with suppress(ValueError):  # the file has taken it away itself
            sys.path.remove(folder)
    _imported[name] = found, registered_by(name)
    return registered_by(name)


def import_files(paths: Iterable[str | Path]) -> None:
    """Run several files for what they register; errors as for `import_file`."""
    for path in paths:
        import_file(path)


def digest(path: str | Path) -> str:
    """The SHA-256 of a file: whether it is what it was."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def module_of(path: str | Path) -> object:
    """The module that `import_file` made of a file."""
    return sys.modules[_module_name(Path(path))]


def in_words(error: BaseException, path: Path | None = None) -> str:
    """An error and the user's own line that it came from, in one sentence; of `path` if that is given."""
    message = str(error).strip().rstrip(".")
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        return f"SyntaxError: {error.msg}, in line {error.lineno} of {Path(error.filename).name}: `{line}`."
    place = user_line(error, path)
    # A ValueError of memkit's is a sentence made to be read as it is. Python's own are none, and have no full stop.
    sentence = isinstance(error, ValueError) and str(error).strip().endswith((".", "?"))
    what = message if sentence else f"{type(error).__name__}: {message}"
    return f"{what}{place and f', {place}'}."


def user_line(error: BaseException, path: Path | None = None) -> str:
    """ "in line 7 of mine.py: `y = x @ w`": the last line of the traceback that is the user's; empty if none is."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = str(Path(frame.filename).resolve())
        ours = file.startswith(_ELSEWHERE) or frame.filename.startswith("<")
        if (path is None and not ours) or (path is not None and file == str(path.resolve())):
            return f"in line {frame.lineno} of {Path(frame.filename).name}: `{(frame.line or '').strip()}`"
    return ""


def _module_name(path: Path) -> str:
    """A module name that two files of one name do not share."""
    return f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
