"""`memkit check`: rules, mixers and architectures held to their laws from the shell.

Part of the command line, and with it the only part of this storey that knows `memkit.testing`.
"""

from ablations.checking.command import Asked, check

__all__ = ["Asked", "check"]
