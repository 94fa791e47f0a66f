"""The triton form: its laws under an interpreter, kernels compiled without a GPU, and refusals."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memkit
from ablations.bench import triton as bench
from memkit import Rule, build
from memkit.engine.forms.triton import form as triton_dual
from memkit.engine.plan import fastest
from small_memory import Case, titans

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is an extra: pip install -e '.[triton]'"
)
BLOCKS = {"mini_batch": 16}


@needs_triton
def test_triton_equals_the_definition_on_the_interpreter() -> None:
    """In a process of its own: what a kernel is, triton decides once, when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/helpers/triton_laws.py"]
    house = Path(__file__).parents[2]
    found = subprocess.run(
        command, cwd=house, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_kernels_compile_for_a_hopper_gpu(kernel: str, tmp_path: Path) -> None:
    """At the reference shape, within the shared memory of a multiprocessor, and with few registers spilled."""
    compiled = compile_for_hopper(kernel, "tf32x3")
    assert "wgmma" in compiled.asm["ptx"], "products run on tensor cores"
    assert compiled.metadata.shared <= 227 * 1024
    assert spilled(compiled.asm["cubin"], tmp_path) <= {"forward": 0, "backward": 512}[kernel]


def compile_for_hopper(kernel: str, precision: str) -> Any:
    triton: Any = pytest.importorskip("triton")
    source = getattr(triton_dual.kernels(), kernel)
    constants = {"L": 64, "D": 64, "HIDDEN": 256, "SLICE": triton_dual.SLICE, "PRECISION": precision}
    kinds = {name: "constexpr" if name in constants else "*fp32" for name in source.arg_names} | {"blocks": "i32"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(source.arg_names) if kinds[name] == "*fp32"}
    made = triton.compiler.ASTSource(source, kinds, constexprs=constants, attrs=aligned)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(made, target=target, options=triton_dual.COMPILED)


def spilled(cubin: bytes, folder: Path) -> int:
    """Bytes a thread that its registers did not hold, by the tool that triton brings."""
    triton: Any = pytest.importorskip("triton")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    used = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    return int(re.findall(r"STACK:(\d+)", used)[0])


@needs_triton
def test_a_cpu_needs_the_interpreter() -> None:
    rule = titans(**BLOCKS)
    state = memkit.init_state(rule, batch=1, heads=1, key_dim=16, value_dim=16)
    x = torch.zeros(1, 2, 1, 16)
    gates = dict.fromkeys(rule.gates, x[..., 0])
    with pytest.raises(ValueError, match="runs on CUDA tensors; got tensors on cpu.*set TRITON_INTERPRET=1"):
        memkit.memorize(rule, x, x, x, gates, state, form="triton")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_on_a_gpu_it_is_as_near_as_dual(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REPEATS": 1, "FORMS": {"triton": {"form": "triton"}, "fused": {"form": "fused"}}}.items():
        monkeypatch.setattr(bench, name, value)
    found = bench.one(2, "cuda", True, lambda name: None)
    assert found["triton"]["distance"] <= 4 * found["fused"]["distance"] + 1e-5


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "memkit.engine.forms.triton.kernels", raising=False)
    with pytest.raises(ValueError, match=r"not available here: .*triton.*pip install -e '\.\[triton\]'"):
        triton_dual.kernels()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (titans(**BLOCKS), "takes keys and values of one width, 16, 32 or 64; got K = 4 and V = 4"),
        (titans(), "has no triton form: its mini_batch is 4, and the kernel's blocks have 16, 32 or 64 tokens"),
        (titans(**BLOCKS, depth=1), "its memory is not an MLP of depth 2 with silu"),
        (titans(**BLOCKS, activation="gelu"), "its memory is not an MLP of depth 2 with silu"),
        (titans(**BLOCKS, residual=True), "its memory is not an MLP of depth 2 with silu"),
        (titans(**BLOCKS, optimizer="gradient_descent"), "it keeps 0 numbers beside each weight, and the kernel one"),
        (titans(**BLOCKS, surprise_limit=1.0), "its surprise_limit is not linear"),
        (memkit.build("rule", "omega"), "each write uses 8 gradients at weights of its own"),
        (
            replace(titans(**BLOCKS), objective=replace(build("objective", "dot"), linear=False, quadratic=False)),
            "the gradient of its objective 'dot' is not linear in the prediction",
        ),
    ],
)
def test_rules_that_triton_cannot_run_are_refused(rule: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(rule).memorize(form="triton")


def test_auto_does_not_choose_it() -> None:
    """Nobody has measured it."""
    assert fastest(titans(**BLOCKS)).name == "fused"
