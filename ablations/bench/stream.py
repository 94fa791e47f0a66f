"""`memkit bench stream`: two million tokens through MAC, MAG, MAL and LMM, with memory and time a token watched."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import memkit
from ablations.bench.base import Benchmark, Tell, benchmark
from ablations.bench.memory import peak

TOKENS, CHUNK = 2**21, 4096
SIZES: dict[str, Any] = {"vocab_size": 256, "dim": 128, "heads": 4, "depth": 2}
MODELS: dict[str, dict[str, Any]] = {
    "lmm": {},
    "mac": {"segment": 64},
    "mag": {"window": 64},
    "mal": {"window": 64},
}


@benchmark("stream")
def stream(tell: Tell) -> Benchmark:
    """Stream 2^21 tokens through each architecture; the end must equal a short call from a saved state."""
    rows, data = [], {}
    for i, name in enumerate(MODELS):
        found = one(name, lambda done, total, i=i, name=name: tell(name, i * total + done, len(MODELS) * total))
        rows.append(
            (
                name,
                f"{found['first']:.0f}",
                f"{found['last']:.0f}",
                f"{found['growth_mib']:+.1f}",
                f"{found['state_kib']:,.0f}",
                f"{found['distance']:.1e}",
                "yes" if found["finite"] else "no",
            )
        )
        data[name] = found
    notes = (
        f"{TOKENS:,} random bytes through 2 layers (dim {SIZES['dim']}, {SIZES['heads']} heads, one row, float32), "
        f"{CHUNK:,} tokens a call, {torch.get_num_threads()} thread(s). Microseconds a token: the median of the first "
        "and of the last eighth of the calls. Memory: growth of the largest resident memory from the first eighth to "
        f"the end. Distance: the last {CHUNK:,} logits against a call from the state that was saved before them."
    )
    columns = ("model", "us a token, first", "last", "growth, MiB", "state, KiB", "distance", "finite")
    return Benchmark("Streaming", columns, tuple(rows), notes, {"models": data})


@torch.no_grad()
def one(name: str, tell: Any) -> dict[str, Any]:
    """Stream through one architecture."""
    torch.manual_seed(0)
    model = memkit.build("architecture", name, **SIZES, **MODELS[name])
    calls, generator = TOKENS // CHUNK, torch.Generator().manual_seed(1)
    eighth, seconds, finite, state, early = max(calls // 8, 1), [], True, None, 0.0
    before, ids, logits = None, torch.zeros(1, 0, dtype=torch.long), torch.zeros(0)
    for call in range(calls):
        tell(call, calls)
        ids = torch.randint(256, (1, CHUNK), generator=generator)
        before, start = state, time.perf_counter()
        logits, state = model(ids, state)
        seconds.append(time.perf_counter() - start)
        finite = finite and bool(logits.isfinite().all())
        early = peak() if call + 1 == eighth else early
    growth = peak() - early
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        memkit.save_state(before, str(path))
        again, _ = model(ids, memkit.load_state(str(path)))
    return {
        "first": 1e6 * statistics.median(seconds[:eighth]) / CHUNK,
        "last": 1e6 * statistics.median(seconds[-eighth:]) / CHUNK,
        "growth_mib": growth,
        "state_kib": state.bytes / 1024 if state is not None else 0,
        "distance": float((again - logits).abs().max()),
        "finite": finite,
    }
