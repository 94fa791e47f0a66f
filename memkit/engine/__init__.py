"""The engine: runs any rule, in the form that is fastest and exact."""

from memkit.engine.compiled import compile_blocks
from memkit.engine.memorize import Observation, memorize, observe, retrieve
from memkit.engine.memory_state import MemoryState, init_state
from memkit.engine.plan import explain

__all__ = ["MemoryState", "Observation", "compile_blocks", "explain", "init_state", "memorize", "observe", "retrieve"]
