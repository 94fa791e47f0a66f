"""Text and JSON files, written whole or not at all, so that a killed run leaves nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memkit.atomic import write_whole


def write_text(path: Path, text: str) -> None:
    """Write a file whole, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole, and the folders above it."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; `ValueError` names a file with anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it, or restore it from a copy.") from None


def check_ours(folder: Path, marker: str) -> None:
    """Raise `ValueError` if a folder holds anything, but not the file `marker`, which every folder of ours has."""
    if folder.exists() and not (folder / marker).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not an output folder. Choose another --out, or empty it.")


def difference(held: Any, wanted: Any, place: str) -> str:
    """Describe the first difference between two trees, with its place; empty if they are equal."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*held, *wanted]):
            inner = difference(held.get(key), wanted.get(key), f"{place}.{key}" if place else str(key))
            if inner:
                return inner
        return ""
    return "" if held == wanted else f"{place} is {held!r} there and {wanted!r} here"
