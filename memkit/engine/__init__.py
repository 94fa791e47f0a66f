"""The engine: runs any rule, in the form that is fastest and exact.

To follow a rule to its outputs, read in this order (1,000 lines at most, as a test holds):

    memkit/rule.py          a rule as data; `Rule.update` is its definition
    forms/scan.py           that definition, token by token: the oracle of every other form
    memkit/layout.py        tokens in blocks: where mini-batches begin and end
    core/rows.py            a state with batch and heads as one axis
    core/tape.py            the gradients of a block's writes, never formed
    core/coefficients.py    the update, unrolled over a block by feeding it ones and zeros
    core/block.py           reading through coefficients, and folding writes into the state
    forms/dual.py           the three together: a block at once, equal to the definition

`core/unrolled`, `core/doubling` and `forms/blocks`, met on the way, are speed and plumbing. `form` has the contract of
a form (`Call`, `Result`), `plan` the list of forms; `memorize` is the door. Beside the heart: `forms/fused` (the same
blocks, faster), `forms/solve`, `forms/iterate`, `forms/write`, `forms/expand`, `forms/step`, `forms/triton`, and
`gradients`, their backward passes by hand. Nobody outside imports from below this file.
"""

from memkit.engine.core.memory_state import MemoryState, fresh_state, init_state, prepared_key_dim, state_from
from memkit.engine.forms.fused.compile import compile_blocks
from memkit.engine.inputs import gate_shape
from memkit.engine.memorize import Observation, memorize, observe
from memkit.engine.options import FormName, Run
from memkit.engine.plan import check_products, choose, exact_forms, explain
from memkit.engine.recompute import in_groups
from memkit.engine.retrieve import retrieve

__all__ = [
    "FormName",
    "MemoryState",
    "Observation",
    "Run",
    "check_products",
    "choose",
    "compile_blocks",
    "exact_forms",
    "explain",
    "fresh_state",
    "gate_shape",
    "in_groups",
    "init_state",
    "memorize",
    "observe",
    "prepared_key_dim",
    "retrieve",
    "state_from",
]
