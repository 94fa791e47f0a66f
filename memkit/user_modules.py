"""Components in a user's own Python file: import it, and locate its errors in words."""

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
    if Path(folder) != Path(sys.prefix)  # a parent of the user's own folders, too
)
"""Folders of code other than the user's."""
_imported: dict[str, tuple[str, list[tuple[str, str]]]] = {}
"""Module name -> digest of the file, and its registrations."""


def import_file(path: str | Path) -> list[tuple[str, str]]:
    """Run a Python file and return kind and name of all its registrations; an unchanged file is run once.

    Raises `ValueError`, with the line of the file, if it does not exist or does not import.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    discover()  # installed components first, so that a file cannot take their names unnoticed
    name, found = _module_name(path), digest(path)
    if _imported.get(name) == (found, registered_by(name)):
        return registered_by(name)
    forget(name)
    linecache.checkcache(str(path))
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # for dataclasses, which look their module up there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as for `python file.py`: files beside it can be imported
    try:
        # Compiled here: the cache of the import system misses a change within a second.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        forget(name)
        del sys.modules[name]
        raise ValueError(f"{path.name} does not import: {in_words(error, path)}") from None
    finally:
        with suppress(ValueError):  # removed by the file itself
            sys.path.remove(folder)
    _imported[name] = found, registered_by(name)
    return registered_by(name)


def import_files(paths: Iterable[str | Path]) -> None:
    """Run several files for their registrations; errors as for `import_file`."""
    for path in paths:
        import_file(path)


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, to recognize a change."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def module_of(path: str | Path) -> object:
    """Return the module made of a file by `import_file`."""
    return sys.modules[_module_name(Path(path))]


def in_words(error: BaseException, path: Path | None = None) -> str:
    """Return an error and the user's own line behind it, of `path` if given, in one sentence."""
    message = str(error).strip().rstrip(".")
    if isinstance(error, SyntaxError) and error.filename:
        line = (error.text or "").strip()
        return f"SyntaxError: {error.msg}, in line {error.lineno} of {Path(error.filename).name}: `{line}`."
    place = user_line(error, path)
    # memkit's ValueErrors are sentences, to be shown as they are. Python's own have no full stop.
    sentence = isinstance(error, ValueError) and str(error).strip().endswith((".", "?"))
    what = message if sentence else f"{type(error).__name__}: {message}"
    return f"{what}{place and f', {place}'}."


def user_line(error: BaseException, path: Path | None = None) -> str:
    """Return the user's last line of the traceback, as "in line 7 of mine.py: `y = x @ w`"; empty without one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = str(Path(frame.filename).resolve())
        ours = file.startswith(_ELSEWHERE) or frame.filename.startswith("<")
        if (path is None and not ours) or (path is not None and file == str(path.resolve())):
            return f"in line {frame.lineno} of {Path(frame.filename).name}: `{(frame.line or '').strip()}`"
    return ""


def _module_name(path: Path) -> str:
    """Return a module name that differs between files of one name."""
    return f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
