"""The laws of every mixer and every language model.

To add a law, write a function `law(component, problem)`, with its equation as docstring, and add a line here.
"""

from __future__ import annotations

from memkit.testing.law import Law, table
from memkit.testing.laws import sequence_masks as masks
from memkit.testing.laws import sequences as laws

SHARED: list[Law] = [
    Law("causality", laws.causality),
    Law("split anywhere", laws.split_anywhere),
    Law("decode is prefill", laws.decode_is_prefill),
    Law("empty call", laws.empty_call),
    Law("state is a value", laws.state_is_a_value),
    Law("rows apart", laws.rows_apart),
    Law("masked token", masks.masked_token),
    Law("left padding", masks.left_padding),
    Law("documents apart", masks.documents_apart),
    Law("reading does not write", laws.reading_does_not_write, laws.has_memory, "a memory in its state"),
    Law("every parameter learns", laws.every_parameter_learns, share=0.2),
    Law("state bytes", laws.state_bytes, share=0.2),
    Law("finite", laws.finite, share=0.2),
    Law("save and load", laws.save_and_load, share=0.5),
]

MIXER_LAWS: dict[str, Law] = table(SHARED)
MODEL_LAWS: dict[str, Law] = table([*SHARED, Law("generate is recomputation", laws.generate_is_recomputation)])
