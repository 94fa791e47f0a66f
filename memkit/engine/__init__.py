"""The engine: runs any rule, in the form that is fastest and exact."""

from memkit.engine.core.memory_state import MemoryState, init_state
from memkit.engine.forms.fused.compile import compile_blocks
from memkit.engine.memorize import Observation, memorize, observe
from memkit.engine.plan import explain
from memkit.engine.retrieve import retrieve

__all__ = ["MemoryState", "Observation", "compile_blocks", "explain", "init_state", "memorize", "observe", "retrieve"]
