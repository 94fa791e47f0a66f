"""Messages for mistakes in the use of the command line."""

from __future__ import annotations

from memkit.registry import UnknownName


def describe(error: Exception) -> str:
    """Describe a mistake: for a file, its path and the reason; for an unknown name, how to give a file of your own."""
    if isinstance(error, UnknownName) and error.kind not in ("benchmark", "grid"):  # --import gives neither
        return f"{error} The file of one of your own is given with --import."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path, and that it may be read or written."
    return str(error)
