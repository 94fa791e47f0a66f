"""What a user did wrong, in words."""

from __future__ import annotations

from memkit.registry import UnknownName


def in_words(error: Exception) -> str:
    """What went wrong; of a file, which one and why; of an unknown name, how one's own comes to be known."""
    if isinstance(error, UnknownName) and error.kind not in ("benchmark", "grid"):  # of which no file is imported
        return f"{error} The file of one of your own is given with --import."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path, and that it may be read or written."
    return str(error)
