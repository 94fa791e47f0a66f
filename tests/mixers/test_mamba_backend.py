"""Mamba-2 by a stand-in for mamba-ssm: outputs, states and gradients of the engine, with masks, documents and cuts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import memkit
from memkit.mixers.backends import SCAN, Scan, mamba
from memkit.mixers.backends.probes import why_not
from memkit.state import tensors
from memkit.testing.tolerance import same

pytestmark = pytest.mark.usefixtures("fresh_probes")

ROWS, TOKENS, DIM = 2, 11, 8


@pytest.fixture
def kernel(packages: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Scan]]:
    """The stand-in taken on a CPU, in any dtype; the calls that it answered."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    answered: list[Scan] = []

    def run(call: Scan) -> Any:
        answered.append(call)
        return mamba.BACKEND.run(call)

    everywhere = [need for need in mamba.BACKEND.needs if need.__name__ not in ("on_cuda", "in_half_precision")]
    assert len(everywhere) == 2
    monkeypatch.setitem(SCAN.backends, "mamba_ssm", replace(mamba.BACKEND, run=run, needs=tuple(everywhere)))
    yield answered


def mixer(backend: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return memkit.build("mixer", "mamba2", dim=DIM, heads=2, state=5, backend=backend, **options).double()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x, a mask with holes, of which one row begins with one, and documents that change at different tokens."""
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(ROWS, TOKENS, generator=g) < 0.7
    mask[0, 0] = False
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 4, 4, 9, 9, 9, 9]])
    return torch.randn(ROWS, TOKENS, DIM, generator=g, dtype=torch.double), mask, documents


def whole(layer: Any, x: Tensor, mask: Tensor, documents: Tensor) -> tuple[Tensor, Any]:
    return layer(x)


def masked(layer: Any, x: Tensor, mask: Tensor, documents: Tensor) -> tuple[Tensor, Any]:
    return layer(x.masked_fill(~mask[..., None], float("nan")), mask=mask)


def in_documents(layer: Any, x: Tensor, mask: Tensor, documents: Tensor) -> tuple[Tensor, Any]:
    return layer(x, mask=mask, segment_ids=documents)


def in_calls(layer: Any, x: Tensor, mask: Tensor, documents: Tensor) -> tuple[Tensor, Any]:
    """Cut anywhere: a few tokens, a single one, none, a read without a write, and the rest."""
    outputs, state = [], None
    for start, stop, write in ((0, 4, True), (4, 5, True), (5, 5, True), (5, 8, False), (8, TOKENS, True)):
        part = slice(start, stop)
        y, state = layer(x[:, part], state, mask=mask[:, part], segment_ids=documents[:, part], write=write)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def outcome(call: Callable[..., Any], backend: str) -> list[Tensor]:
    """Outputs, states, and the gradients of both for the input and every parameter."""
    layer, (x, mask, documents) = mixer(backend), inputs()
    x.requires_grad_()
    y, state = call(layer, x, mask, documents)
    held = [z for z in tensors(state) if z.is_floating_point()]
    g = torch.Generator().manual_seed(2)
    total = sum((z * torch.randn(z.shape, generator=g, dtype=z.dtype)).sum() for z in (y, *held))
    return [y, *tensors(state), *torch.autograd.grad(total, [x, *layer.parameters()])]  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [whole, masked, in_documents, in_calls])
@pytest.mark.parametrize("backend", ["auto", "mamba_ssm"])
def test_the_kernel_and_the_engine_agree(kernel, call, backend):
    by_engine = outcome(call, "torch")
    assert not kernel
    by_kernel = outcome(call, backend)
    assert kernel
    for a, b in zip(by_kernel, by_engine, strict=True):
        same("by the kernel", a, b)


def test_the_state_goes_on_in_the_engine(kernel):
    (x, _, _), layer, engine = inputs(), mixer("mamba_ssm"), mixer("torch")
    _, state = layer(x[:, :6])
    _, other = engine(x[:, :6])
    assert state.memory.phase == other.memory.phase == 0
    same("by the engine after the kernel", engine(x[:, 6:], state)[0], engine(x)[0][:, 6:])


def test_gradients_of_gradients_are_refused(kernel):
    layer, (x, _, _) = mixer("mamba_ssm"), inputs()
    x.requires_grad_()
    (once,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="the scan by mamba-ssm cannot be differentiated again.*backend='torch'"):
        once.sum().backward()


@pytest.mark.parametrize("tokens", [0, 1])
def test_fewer_than_two_tokens_are_no_scan(kernel, caplog, tokens):
    with caplog.at_level(logging.INFO, logger="memkit"):
        mixer("mamba_ssm")(torch.zeros(1, tokens, DIM, dtype=torch.double))
    assert not kernel and not caplog.records


def test_half_precision_keeps_the_state_in_float32(kernel):
    layer, (x, mask, _) = mixer("mamba_ssm").bfloat16(), inputs()
    y, state = layer(x.bfloat16(), mask=mask)
    assert (y.dtype, state.memory.weights["w1"].dtype) == (torch.bfloat16, torch.float32)
    assert kernel[0].dtype == torch.bfloat16 and kernel[0].dt.dtype == kernel[0].decay.dtype == torch.float32
    float_layer = mixer("mamba_ssm").float()
    with torch.autocast("cpu", torch.bfloat16):
        _, state = float_layer(x.float(), mask=mask)
    assert kernel[1].dtype == torch.bfloat16 and state.memory.weights["w1"].dtype == torch.float32


@pytest.mark.parametrize(("backend", "level"), [("auto", logging.INFO), ("mamba_ssm", logging.WARNING)])
def test_a_call_that_the_kernel_cannot_take_goes_to_the_engine(packages, monkeypatch, caplog, backend, level):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (x, _, _), layer = inputs(), mixer(backend)
    with caplog.at_level(logging.INFO, logger="memkit"):
        for _ in range(2):  # said once
            assert torch.equal(layer(x)[0], mixer("torch")(x)[0])
    (record,) = caplog.records
    assert record.levelno == level
    assert record.message == "mamba2 runs by the engine (mamba_ssm: the tensors are on cpu, the kernel is for cuda)"


def test_the_kernel_says_which_calls_it_cannot_take(kernel, monkeypatch):
    layer, (x, _, _) = mixer("mamba_ssm").bfloat16(), inputs()
    layer(x.bfloat16())
    (call,) = kernel
    on_cuda, in_half, *others = mamba.BACKEND.needs
    assert "the tensors are on cpu" in str(on_cuda(call))
    assert [need(call) for need in (in_half, *others)] == [None, None, None]
    assert in_half(replace(call, dtype=torch.float32)) == "the kernel takes bfloat16 and float16, not torch.float32"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert mamba.BACKEND.needs[2](call) == "its gradients are sums in no fixed order"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert mamba.BACKEND.needs[3](call) == "torch.compile does not look into the kernel"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu_agrees_with_the_engine():
    if reason := why_not(mamba.BACKEND.probe):
        pytest.skip(reason)
    x, mask, documents = (z.cuda() for z in inputs())
    found = []
    for backend in ("mamba_ssm", "torch"):
        layer = mixer(backend).bfloat16().cuda()
        y, state = layer(x.bfloat16(), mask=mask, segment_ids=documents)
        (y.float().square().sum() + state.memory.weights["w1"].square().sum()).backward()
        found.append([y, state.memory.weights["w1"], *(p.grad for p in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert float((a - b).float().norm()) < 0.03 * float(b.float().norm()) + 1e-3
