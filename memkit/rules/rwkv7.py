"""RWKV-7's time mixing (Peng et al., arXiv 2503.14456, section 4.1).

    S_t = S_{t-1} (diag(w_t) - khat_t^T (a_t * khat_t)) + v_t^T ktilde_t,   y_t = r_t S_t^T
    khat_t = k_t * xi / ||k_t * xi||,   ktilde_t = k_t * lerp(1, a_t, alpha)

A token erases under the removal key khat and writes under the replacement key ktilde. So it makes two steps: it
fades and erases, at the weights before the token, and then writes.

Symbols: w = 1 - `decay`, a = `erase`, xi = `removal_key`, alpha = `replacement`, all one number per key
channel; the last two are learned constants in the paper and 1 by default; r = query. `removal` (1 by default) scales
the erasure; at 0 only the decay forgets. The paper calls a an in-context learning rate, but it writes with
a = 0 too, so it is not the gate `lr`. The engine's matrix is S^T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memkit.parts.memory import linear
from memkit.parts.prepare import one_after_the_other
from memkit.parts.retention import decay
from memkit.registry import register
from memkit.rule import Gate, Gates, Objective, Optimizer, Rule, Slots, Tokens

ERASE = Gate("erase", 0.0, 1.0, per="key")
REMOVAL = Gate("removal", 0.0, 1.0, default=1.0)
KEYS = (Gate("removal_key", 0.1, 2.0, per="key", default=1.0), Gate("replacement", 0.0, 1.0, per="key", default=1.0))


def erase_or_write(prediction: Tensor, target: Tensor, gates: Gates) -> Tensor:
    """1/2 removal ||M(k)||^2 - <M(k), v>: v = 0 in a step that erases, removal = 0 in a step that writes."""
    return 0.5 * gates["removal"] * prediction.square().sum(-1) - (prediction * target).sum(-1)


def channel_step(grad: Tensor, weight: Tensor, slots: Slots, gates: Gates) -> tuple[Tensor, Slots]:
    """A step size for every key channel."""
    return -gates["erase"] * grad, ()


def erase_then_write(tokens: Tokens) -> Tokens:
    """The two steps of every token."""
    q, k, v, gates = tokens
    a, fade, removal = gates["erase"], gates["decay"], gates["removal"]
    removal_key = F.normalize(k * gates["removal_key"], dim=-1)
    replacement_key = k * (1 + (a - 1) * gates["replacement"])
    steps = {
        "erase": [a, torch.ones_like(a)],
        "decay": [fade, torch.zeros_like(fade)],
        "removal": [removal, torch.zeros_like(removal)],
    }
    q, k, v = (one_after_the_other(x) for x in ([q, q], [removal_key, replacement_key], [torch.zeros_like(v), v]))
    return Tokens(q, k, v, {name: one_after_the_other(gate) for name, gate in steps.items()})


@register("rule", "rwkv7")
def rwkv7() -> Rule:
    """A matrix that fades, erases under one key and writes under another."""
    return Rule(
        name="rwkv7",
        memory=linear(),
        objective=Objective(name="erase_or_write", loss=erase_or_write, gates=(REMOVAL,), quadratic=True),
        optimizer=Optimizer(name="channel_descent", step=channel_step, gates=(ERASE,)),
        retention=decay(per="key"),
        prepare=erase_then_write,
        prepare_gates=KEYS,
        steps=2,
        mini_batch=1,
    )
