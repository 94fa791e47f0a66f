"""A Titans memory layer, forward and backward: memkit against titans-pytorch 0.5.5.

What is compared: one whole layer on each side, x [B, T, D] -> y [B, T, D], in float32, and the gradients of
mean(y^2) with respect to x and all parameters. Both memories are MLPs of the same depth and hidden width, one
per head, updated at every token by gradient descent with momentum and weight decay, with gradients at the
weights of the last multiple of the mini-batch (Titans eq. 12-16), and both read every token's query after
that token's own write.

    memkit           build("mixer", "neural_memory", rule={"name": "titans", "mini_batch": b, ...})
    titans-pytorch   NeuralMemory(chunk_size=1, batch_size=b, ...): chunk_size=1 is what gives every token an
                     update of its own, as in the paper; with larger chunks it averages tokens and is faster

Where the layers differ: titans-pytorch has a norm before its projections, GELU, and a residual and layer norm
around the memory, whose gain is written too (`--same-memory` gives ours GELU, residual and layer norm); its
loss is averaged over channels, not summed, which is a factor in the learning rate. memkit has a short
convolution and SiLU after its projections, l2-normalised queries and keys, and an output norm and gate.

Each side runs in a process of its own, and they take turns. Memory is the growth of the process's resident
memory at the peak of the first forward and backward, after imports, building and a call on a few tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from interleave import Step, Worker, compare, serve

PEER, PEER_VERSION = "titans-pytorch", "0.5.5"
SIZES = {
    "dim": (256, "width of the layer"),
    "heads": (4, "memories side by side"),
    "tokens": (512, "tokens in a row"),
    "batch": (1, "rows"),
    "depth": (2, "layers of a memory"),
    "expansion": (4, "hidden units of a memory, as a multiple of dim / heads"),
    "mini-batch": (64, "tokens whose gradients see the same weights"),
}


def ours(options: argparse.Namespace) -> Any:
    """The layer of memkit."""
    import memkit

    memory = {"activation": "gelu", "residual": True} if options.same_memory else {}
    sizes = {"depth": options.depth, "expansion": options.expansion, "mini_batch": options.mini_batch}
    rule = {"name": "titans", **sizes, **memory}
    return memkit.build("mixer", "neural_memory", dim=options.dim, heads=options.heads, rule=rule)


def theirs(options: argparse.Namespace) -> Any:
    """The layer of titans-pytorch; `ImportError` says how to get it."""
    try:
        found = version(PEER)
    except PackageNotFoundError:
        found = "not installed"
    if found != PEER_VERSION:
        raise ImportError(
            f"{PEER} {PEER_VERSION} is needed, and in {sys.executable} it is {found}. Install it with "
            "`pip install -e '.[bench]'`, or name an interpreter that has it with --peer-python."
        )
    from titans_pytorch import NeuralMemory  # pyright: ignore[reportMissingImports]

    return NeuralMemory(
        options.dim,
        chunk_size=1,
        batch_size=options.mini_batch,
        dim_head=options.dim // options.heads,
        heads=options.heads,
        default_model_kwargs={"depth": options.depth, "expansion_factor": float(options.expansion)},
    )


def prepare(options: argparse.Namespace) -> tuple[Step, dict[str, Any]]:
    """Build one side's layer and its input; returns a forward and backward, and what it ran on."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layer = ours(options) if options.worker == "ours" else theirs(options)
    x = torch.randn(options.batch, options.tokens, options.dim, requires_grad=True)

    def step(tokens: int = options.tokens) -> None:
        layer.zero_grad()
        x.grad = None
        y, _ = layer(x[:, :tokens])
        y.square().mean().backward()

    step(3)  # imports and kernels that a first call loads are no part of the measurement
    return step, {"torch": torch.__version__, "threads": torch.get_num_threads()}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (default, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what}; default {default}")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed runs of each side; default 5")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each side; default: torch's own")
    parser.add_argument("--same-memory", action="store_true", help="give our memory the peer's GELU, residual, norm")
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help=f"an interpreter with {PEER}; default: this one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in (*SIZES, "pairs"):
        if getattr(options, name.replace("-", "_")) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.dim % options.heads:
        parser.error(f"--heads {options.heads} does not divide --dim {options.dim}")
    return options


def table(result: dict[str, Any]) -> str:
    """The figures as a short Markdown table."""
    seconds = [f"{median:.3f} s" for median in result["median_seconds"]]
    spread = [f"{min(s):.3f} to {max(s):.3f} s" for s in zip(*result["seconds"], strict=True)]
    ratios = result["times_faster_in_each_pair"]
    mib = ["not measured" if m is None else f"{m:.0f} MiB" for m in result["peak_mib"]]
    less = result["times_less_memory"]
    return "\n".join(
        [
            f"| forward + backward | memkit | {PEER} {PEER_VERSION} | memkit is better by |",
            "|---|---|---|---|",
            f"| median of {len(ratios)} | {seconds[0]} | {seconds[1]} | {result['times_faster']:.1f} times |",
            f"| spread | {spread[0]} | {spread[1]} | {min(ratios):.1f} to {max(ratios):.1f} in a pair |",
            f"| peak memory | {mib[0]} | {mib[1]} | {'-' if less is None else f'{less:.1f} times'} |",
        ]
    )


def drive(options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides; raises `RuntimeError` when one of them cannot start."""
    command = [os.path.abspath(__file__), *sys.argv[1:], "--worker"]
    peer = Worker([options.peer_python, *command, "theirs"])  # first, because it may be missing
    memkit = Worker([sys.executable, *command, "ours"])
    try:
        result = compare(memkit, peer, options.pairs, lambda text: print(text, file=sys.stderr))
    finally:
        memkit.close()
        peer.close()
    setting = {name: value for name, value in vars(options).items() if name not in ("json", "worker", "peer_python")}
    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    return {"setting": setting, "machine": machine, "workers": [memkit.about, peer.about], **result}


def main() -> int:
    """Be the driver, or one of its workers."""
    options = parse()
    if options.worker:
        serve(lambda: prepare(options))
        return 0
    try:
        result = drive(options)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
