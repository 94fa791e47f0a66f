"""Files that appear whole: a reader, or a crash, meets the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under another name, put it on the disk, then give it its own name.

    A write that fails leaves the old file. Raises `OSError` where the folder cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the bytes before the name
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a folder of complete files its own name, which is free, once its files are on the disk."""
    for path in partial.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    partial.rename(target)
