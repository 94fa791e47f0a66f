"""A Titans memory layer: memkit against titans-pytorch 0.5.5, in three settings.

    token    forward and backward, T = 512, B = 1: an update at every token on both sides
    coarse   forward and backward, T = 2048, B = 8: an update at every token here, one per 64 tokens there
    decode   one token per call from a state, no gradients: an update at every token on both sides

The comparison: one whole layer on each side, x [B, T, D] -> y [B, T, D], in float32, and in training the
gradients of mean(y^2) with respect to x and all parameters. Both memories are MLPs of the same depth and hidden
width, one per head, updated by gradient descent with momentum and weight decay, and both read every token's query
after that token's own write. Gradients are taken at the weights of the last multiple of the mini-batch (Titans
eq. 12-16); in the peer's coarse setting all are taken at the weights before the first token.

    memkit           build("mixer", "neural_memory", rule={"name": "titans", "mini_batch": b, ...})
    titans-pytorch   NeuralMemory(chunk_size=1, batch_size=b, ...): with chunk_size=1 every token has an
                     update of its own, as in the paper; NeuralMemory(chunk_size=64) averages 64 tokens to one

Differences of the layers: titans-pytorch has a norm before its projections, GELU, and a residual and layer norm
around the memory, with a gain that is written too (`--same-memory` gives ours GELU, residual and layer norm); its
loss is averaged over channels, not summed, a factor in the learning rate. memkit has a short
convolution and SiLU after its projections, l2-normalized queries and keys, and an output norm and gate.

Each side runs in a process of its own, and they take turns. Memory is the growth of the process's resident
memory at the peak of the first forward and backward, after imports, building and a call on a few tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from interleave import Step, Worker, compare, serve

PEER, PEER_VERSION = "titans-pytorch", "0.5.5"
SIZES = {
    "dim": (256, "width of the layer"),
    "heads": (4, "memories side by side"),
    "depth": (2, "layers of a memory"),
    "expansion": (4, "hidden units of a memory, as a multiple of dim / heads"),
    "mini-batch": (64, "tokens whose gradients see the same weights"),
}


class Setting(NamedTuple):
    """tokens, batch: of one run. chunk: tokens per update of the peer. faster, less: the goals for time and memory."""

    tokens: int
    batch: int
    chunk: int
    faster: float
    less: float | None
    what: str = "forward + backward"


SETTINGS = {
    "token": Setting(512, 1, 1, 80, 20),
    "coarse": Setting(2048, 8, 64, 4, 4),
    "decode": Setting(64, 1, 1, 10, None, "one token per call"),
}


def ours(options: argparse.Namespace) -> Any:
    """Build the layer of memkit."""
    import memkit

    memory = {"activation": "gelu", "residual": True} if options.same_memory else {}
    sizes = {"depth": options.depth, "expansion": options.expansion, "mini_batch": options.mini_batch}
    rule = {"name": "titans", **sizes, **memory}
    kept = {"recompute": options.recompute}
    return memkit.build("mixer", "neural_memory", dim=options.dim, heads=options.heads, rule=rule, **kept)


def theirs(options: argparse.Namespace) -> Any:
    """Build the layer of titans-pytorch; `ImportError` says how to install it."""
    try:
        installed = version(PEER)
    except PackageNotFoundError:
        installed = "not installed"
    if installed != PEER_VERSION:
        raise ImportError(
            f"{PEER} {PEER_VERSION} is needed, and in {sys.executable} it is {installed}. Install it with "
            "`pip install -e '.[bench]'`, or name an interpreter that has it with --peer-python."
        )
    from titans_pytorch import NeuralMemory  # pyright: ignore[reportMissingImports]

    return NeuralMemory(
        options.dim,
        chunk_size=options.chunk,
        batch_size=options.mini_batch if options.chunk == 1 else None,
        dim_head=options.dim // options.heads,
        heads=options.heads,
        default_model_kwargs={"depth": options.depth, "expansion_factor": float(options.expansion)},
    )


def prepare(options: argparse.Namespace) -> tuple[Step, dict[str, Any]]:
    """Build one side's layer and its input; returns the function of one run, and facts about this side."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layer = ours(options) if options.worker == "ours" else theirs(options)
    x = torch.randn(options.batch, options.tokens, options.dim)
    step = (decoding if options.setting == "decode" else training)(layer, x, options)
    return step, {"torch": torch.__version__, "threads": torch.get_num_threads()}


def training(layer: Any, x: Any, options: argparse.Namespace) -> Step:
    """Return a run: forward and backward of the layer over all tokens."""
    x.requires_grad_()
    if options.compile and options.worker == "ours":
        import memkit

        memkit.compile_blocks()

    def step(tokens: int = options.tokens) -> None:
        layer.zero_grad()
        x.grad = None
        y, _ = layer(x[:, :tokens])
        y.square().mean().backward()

    # The first call loads and compiles, and is not measured.
    step(2 * options.mini_batch if options.compile else 3)
    return step


def decoding(layer: Any, x: Any, options: argparse.Namespace) -> Step:
    """Return a run: one token per call, from the state after as many tokens."""
    import torch

    layer.eval()
    call = layer
    if options.compile and options.worker == "ours":
        torch._dynamo.config.trace_autograd_ops = True
        call = torch.compile(layer, fullgraph=True)

    @torch.no_grad()
    def read(state: Any) -> Any:
        for token in x.split(1, 1):
            _, state = call(token, state) if options.worker == "ours" else call(token, state=state)
        return state

    begun = read(layer.init_state(options.batch) if options.worker == "ours" else None)
    read(begun)  # warms up the kernels for a state in use
    return lambda: read(begun)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    about, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", nargs="?", choices=list(SETTINGS), default="token", help="default: token")
    for name in ("tokens", "batch", "chunk"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="instead of the setting's")
    for name, (default, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what}; default {default}")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="timed runs of each side; default 5")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each side; default: torch's own")
    parser.add_argument("--recompute", type=int, metavar="N", help="keep our states every N tokens only, in training")
    parser.add_argument("--compile", action="store_true", help="compile our layer, or in training its blocks")
    parser.add_argument("--same-memory", action="store_true", help="give our memory the peer's GELU, residual, norm")
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PATH", help=f"an interpreter with {PEER}; default: this one"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write all figures here too, for `memkit bench page`")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    setting = SETTINGS[options.setting]
    for name in ("tokens", "batch", "chunk"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(setting, name))
    for name in (*SIZES, "tokens", "batch", "chunk", "pairs", "threads", "recompute"):
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    if options.recompute is not None and options.setting == "decode":
        parser.error("--recompute is for training, and decode has none")
    if options.dim % options.heads:
        parser.error(f"--heads {options.heads} does not divide --dim {options.dim}")
    return options


def drive(options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides; raises `RuntimeError` if one of them cannot start."""
    command = [os.path.abspath(__file__), *sys.argv[1:], "--worker"]
    peer = Worker([options.peer_python, *command, "theirs"])  # first, because it may be missing
    memkit = Worker([sys.executable, *command, "ours"])
    try:
        result = compare(memkit, peer, options.pairs, lambda text: print(text, file=sys.stderr))
    finally:
        memkit.close()
        peer.close()
    skipped = ("out", "worker", "peer_python")
    setting = {name: value for name, value in vars(options).items() if name not in skipped}
    return {"setting": setting, "workers": [memkit.about, peer.about], **result}


def benchmark(options: argparse.Namespace, result: dict[str, Any]) -> Any:
    """Turn the figures into a benchmark of `memkit bench`."""
    from ablations.bench.base import Benchmark
    from ablations.bench.goal import Goal, single
    from ablations.bench.machine import about
    from ablations.bench.timing import Spread

    setting = SETTINGS[options.setting]
    mine, its = (f"{median:.3f} s" for median in result["median_seconds"])
    spread = [f"{min(s):.3f} to {max(s):.3f} s" for s in zip(*result["seconds"], strict=True)]
    ratios = Spread.of(result["times_faster_in_each_pair"])
    mib, its_mib = ("not measured" if m is None else f"{m:.0f} MiB" for m in result["peak_mib"])
    less = result["times_less_memory"]
    rows = [
        (f"median of {options.pairs}", mine, its, f"{ratios.median:.1f} times"),
        ("spread", *spread, f"{ratios.low:.1f} to {ratios.high:.1f} in a pair"),
    ]
    if setting.less is not None:
        rows.append(("peak memory", mib, its_mib, "-" if less is None else f"{less:.1f} times"))
    where = f"T = {options.tokens}, B = {options.batch}, chunk_size {options.chunk}"
    where += f", recompute={options.recompute}" * bool(options.recompute) + ", compiled" * options.compile
    goals = [Goal(f"a Titans layer, {setting.what}, {where}", mine, its, ratios, setting.faster, unit="times faster")]
    if setting.less is not None and less is not None:
        goals.append(Goal(f"its memory, {where}", mib, its_mib, single(less), setting.less, unit="times less"))
    notes = (
        f"One layer, {setting.what}, {where}, dim {options.dim}, {options.heads} heads, MLP memory of depth "
        f"{options.depth} and expansion {options.expansion}, float32, {result['workers'][0]['threads']} thread(s); "
        "each side in a process of its own, in turn. `--help` of the command lists the differences of the layers."
    )
    command = f"python benchmarks/{' '.join([Path(__file__).name, *_without_paths(sys.argv[1:])])}"
    facts = about(command) | {"threads": str(result["workers"][0]["threads"]), "torch": _versions(result["workers"])}
    columns = (setting.what, "memkit", f"{PEER} {PEER_VERSION}", "memkit is better by")
    title = f"Against {PEER}: {options.setting}"
    return Benchmark(title, columns, tuple(rows), notes, result, tuple(goals), about=facts)


def _versions(workers: list[dict[str, Any]]) -> str:
    """The torch version of both sides, whose environments may differ."""
    return " and ".join(dict.fromkeys(worker["torch"] for worker in workers))


def _without_paths(arguments: list[str]) -> list[str]:
    """The command line without the paths of this machine."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("--out", "--peer-python"):
            next(rest, None)
        elif not argument.startswith(("--out=", "--peer-python=")):
            kept.append(argument)
    return kept


def main() -> int:
    """Run as the driver, or as one of its workers."""
    options = parse()
    if options.worker:
        serve(lambda: prepare(options))
        return 0
    try:
        figures = benchmark(options, drive(options))
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(figures.markdown())
    if options.out:
        from ablations.bench.page import write_page

        how = "_recompute" * bool(options.recompute) + "_compiled" * options.compile
        figures.write(options.out, f"peer_{options.setting}{how}")
        write_page(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
