"""The components of this storey: importing this module registers tasks, shipped grids and benchmarks."""

from ablations.bench import compiling, core, decode, length, models, rounds, rules, stream, triton
from ablations.grid import register_shipped
from ablations.tasks import recall, text

register_shipped()

__all__ = ["compiling", "core", "decode", "length", "models", "recall", "rounds", "rules", "stream", "text", "triton"]
