"""The command `memkit`: one file per command, put together in `commands`."""

from ablations.cli.commands import app, main

__all__ = ["app", "main"]
