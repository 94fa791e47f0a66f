"""The toolkit's own components: importing this module registers them."""

from memkit.mixers import attention, local_memory, neural_memory, persistent
from memkit.mixers import mamba2 as mamba2_mixer
from memkit.parts import memory, objective, optimizer, retention
from memkit.rules import (
    delta_net,
    delta_product,
    gated_delta_net,
    gla,
    kda,
    linear_attention,
    longhorn,
    retnet,
    rwkv7,
    titans,
    ttt_linear,
)
from memkit.rules import mamba2 as mamba2_rule

__all__ = [
    "attention",
    "local_memory",
    "delta_net",
    "delta_product",
    "gated_delta_net",
    "gla",
    "kda",
    "linear_attention",
    "longhorn",
    "mamba2_mixer",
    "mamba2_rule",
    "memory",
    "neural_memory",
    "objective",
    "optimizer",
    "persistent",
    "retention",
    "retnet",
    "rwkv7",
    "titans",
    "ttt_linear",
]
