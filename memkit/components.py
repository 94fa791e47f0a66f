"""The toolkit's own components: importing this module registers them."""

from memkit.parts import memory, objective, optimizer, retention
from memkit.rules import mamba2 as mamba2_rule
from memkit.rules import titans

__all__ = [
    "mamba2_rule",
    "memory",
    "objective",
    "optimizer",
    "retention",
    "titans",
]
