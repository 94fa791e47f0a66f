"""memkit: a modular memory-layer toolkit for hybrid sequence models.

Write a memory's update once, for one weight and one token; the token-by-token definition, the
chunk-parallel form, the decoder, the property tests and the row in an ablation table are derived.
"""

from memkit.divergence import DivergedError, Divergence, find_divergence
from memkit.engine import (
    MemoryState,
    Observation,
    Run,
    compile_blocks,
    explain,
    init_state,
    memorize,
    observe,
    retrieve,
)
from memkit.files import load_state, save_state
from memkit.registry import Config, build, names, register
from memkit.rule import Gate, Objective, Optimizer, Retention, Rule
from memkit.state import State

__all__ = [
    "Config",
    "DivergedError",
    "Divergence",
    "Gate",
    "MemoryState",
    "Objective",
    "Observation",
    "Optimizer",
    "Retention",
    "Rule",
    "Run",
    "State",
    "build",
    "compile_blocks",
    "explain",
    "find_divergence",
    "init_state",
    "load_state",
    "memorize",
    "names",
    "observe",
    "register",
    "retrieve",
    "save_state",
]
