"""Write tests/data/transformers.json: what the torch code of transformers makes of `peer_tokens`.

Run it where transformers 5 and torch are installed, which the tests do not need:

    python tests/helpers/write_peer_results.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peer_tokens import HEADS, KEY, peer_tokens, slopes

PLACE = Path(__file__).parents[1] / "data" / "transformers.json"
CHUNK = 4
Leaves = dict[str, Tensor]
Found = tuple[Tensor, Tensor]


def model(name: str) -> Any:
    """A modeling module of transformers."""
    return import_module(f"transformers.models.{name}.modeling_{name}")


def mamba2(x: Leaves) -> Found:
    """What is kept is exp(dt A): with A = -1, dt = -log keep, and values are divided by the dt that multiplies them."""
    dt = -x["keep"].log()
    values = x["v"] * (x["lr"] / dt)[..., None]
    y, state = model("mamba2").mamba2_chunk_scan(
        values, dt, -torch.ones(HEADS), x["k"], x["q"], CHUNK,
        initial_states=x["state"].mT, return_final_states=True,
    )  # fmt: skip
    return y, state.mT


def delta(function: Callable[..., Any], gate: str) -> Callable[[Leaves], Found]:
    """A delta rule that divides its queries by sqrt(K)."""

    def run(x: Leaves) -> Found:
        return function(
            x["q"] * KEY**0.5, x["k"], x["v"], x[gate].log(), x["lr"],
            chunk_size=CHUNK, initial_state=x["state"], output_final_state=True,
        )  # fmt: skip

    return run


def main() -> None:
    """Run every peer and keep its numbers."""
    peers: dict[str, Callable[[Leaves], Found]] = {
        "mamba2": mamba2,
        "gated_delta_net": delta(model("qwen3_next").torch_chunk_gated_delta_rule, "keep"),
        "kda": delta(model("kimi_linear").chunk_kimi_delta_attention, "keep_key"),
    }
    results: dict[str, Any] = {}
    for name, run in peers.items():
        leaves = {key: x.requires_grad_() for key, x in peer_tokens().items()}
        y, state = run(leaves)
        found = {"y": y, "state after": state, **slopes(y, state, leaves)}
        results[name] = {key: [round(n, 6) for n in x.flatten().tolist()] for key, x in found.items()}
    made_by = {name: version(name).partition("+")[0] for name in ("transformers", "torch")}
    PLACE.parent.mkdir(exist_ok=True)
    PLACE.write_text(json.dumps({"made by": made_by, **results}, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
