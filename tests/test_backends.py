"""Attention backends: the merge against dense attention, conventions by stand-ins, and the choice."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import stand_ins
import torch
from torch import Tensor

from memkit.mixers.backends import (
    BACKENDS,
    Backend,
    Banded,
    banded_attention,
    check_backend,
    choice,
    flash,
    flex,
    mamba_ssm_available,
    memory_efficient,
    merging,
    sdpa,
    ssd,
)
from memkit.mixers.backends.probes import forget, why_not

TENSORS = ("q", "k", "v", "prefix_k", "prefix_v")


@pytest.fixture(autouse=True)
def fresh_probes():
    """Probes are asked once per process; tests change what they find."""
    forget()
    choice._said.clear()
    yield
    forget()


def question(tokens: int, window: int | None, cached: int, prefix: int, first: int | Tensor = 0) -> Banded:
    generator = torch.Generator().manual_seed(tokens + 10 * cached)

    def draw(length: int) -> Tensor:
        return torch.randn(2, 3, length, 8, dtype=torch.float64, generator=generator).requires_grad_()

    k, v = draw(cached + tokens), draw(cached + tokens)
    return Banded(draw(tokens), k, v, draw(prefix), draw(prefix), window, first)


def literally(call: Banded) -> Tensor:
    """The definition in the docstring of Banded, one query at a time."""
    rows, _, tokens, width = call.q.shape
    answers = []
    for b in range(rows):
        first = call.first if isinstance(call.first, int) else int(call.first[b])
        for t in range(tokens):
            here = call.cached + t
            slots = [s for s in range(first, here + 1) if call.window is None or here - s < call.window]
            k = torch.cat([call.prefix_k[b], call.k[b][:, slots]], 1)
            v = torch.cat([call.prefix_v[b], call.v[b][:, slots]], 1)
            weights = torch.exp((k * call.q[b, :, t, None]).sum(-1) / width**0.5)
            answers.append((weights[..., None] * v).sum(1) / weights.sum(1)[:, None])
    return torch.stack(answers).unflatten(0, (rows, tokens)).transpose(1, 2)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    worst = (a - b).abs().max().item() if a.numel() else 0.0
    assert worst <= tolerance * (1 + (b.abs().max().item() if b.numel() else 0.0)), worst


def agree(run, call: Banded, reference=literally) -> None:
    """Same answer, and the same gradients for every tensor that a kernel differentiates."""
    here, there = run(call), reference(call)
    close(here, there)
    weight = torch.randn(here.shape, dtype=here.dtype, generator=torch.Generator().manual_seed(7))
    inputs = [getattr(call, name) for name in TENSORS]
    for name, a, b in zip(
        TENSORS,
        torch.autograd.grad((here * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((there * weight).sum(), inputs, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        assert a.isfinite().all(), name
        close(a, b, 1e-8)


CASES = {
    "fresh": question(9, 4, 3, 0, first=3),
    "cache": question(9, 4, 3, 0),
    "cache, prefix": question(9, 4, 3, 5),
    "half a cache, prefix": question(9, 4, 3, 2, first=2),
    "one token": question(1, 4, 3, 2, first=1),
    "window of one": question(6, 1, 0, 1),
    "blocks": question(77, 5, 4, 2, first=4),
    "wide blocks": question(95, 40, 39, 1, first=39),
    "no window": question(9, None, 0, 0),
    "no window, cache, prefix": question(9, None, 4, 2),
}
RAGGED = {
    "rows differ": question(9, 4, 3, 2, first=torch.tensor([3, 1])),
    "rows differ, blocks": question(77, 5, 4, 1, first=torch.tensor([0, 4])),
    "rows differ, no window": question(9, None, 4, 2, first=torch.tensor([4, 1])),
    "rows differ, one token": question(1, None, 4, 0, first=torch.tensor([0, 4])),
}


@pytest.mark.parametrize("case", [*CASES, *RAGGED])
def test_torch_answers_the_definition(case):
    agree(sdpa.run, {**CASES, **RAGGED}[case])


@pytest.mark.parametrize("case", ["cache, prefix", "blocks", "no window, cache, prefix", "rows differ"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_forward_answers_the_definition(case):
    with torch.no_grad():  # on a CPU it has no backward
        call = {**CASES, **RAGGED}[case]
        call = replace(call, **{name: getattr(call, name).detach() for name in TENSORS})
        close(flex.run(call), sdpa.run(call))


def torch_kernel() -> merging.Kernel:
    """A flash-like kernel in plain torch: what the merge promises does not depend on whose kernel it is."""

    def see(q: Tensor, k: Tensor, reach: merging.Reach) -> Tensor:
        return stand_ins.band(q.shape[1], k.shape[1], *reach)

    def scale(q: Tensor) -> float:
        return q.shape[-1] ** -0.5

    return merging.Kernel(
        lambda q, k, v, reach: stand_ins.dense(q, k, v, see(q, k, reach), scale(q))[0],
        lambda q, k, v, reach: stand_ins.dense(q, k, v, see(q, k, reach), scale(q)),
        lambda grad, q, k, v, out, lse, reach: stand_ins.dense_backward(
            grad, q, k, v, out, lse, see(q, k, reach), scale(q)
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_merged_kernels_answer_the_definition(case):
    agree(lambda call: merging.run_banded(torch_kernel(), call), CASES[case])


def test_merge_survives_scores_far_apart():
    """One set of keys outweighs the other by e^600: no overflow, no NaN, the right side wins."""
    call = question(5, 3, 2, 2)
    loud = replace(call, prefix_k=(call.prefix_k * 300).detach().requires_grad_())
    agree(lambda c: merging.run_banded(torch_kernel(), c), loud, sdpa.run)


def test_merge_takes_the_gradient_of_a_sum():
    """autograd hands over one expanded number there; kernels must get a real tensor."""
    seen = []
    kernel = torch_kernel()

    def backward(grad, *rest):
        seen.append(grad.is_contiguous())
        return kernel.backward(grad, *rest)

    merging.run_banded(kernel._replace(backward=backward), CASES["cache, prefix"]).sum().backward()
    assert seen == [True, True]


@pytest.fixture
def packages(monkeypatch):
    """The stand-ins in the places of the packages."""
    for name, module in {
        "flash_attn": stand_ins.flash_attn_interface(),
        "flash_attn.flash_attn_interface": stand_ins.flash_attn_interface(),
        "xformers": stand_ins.xformers_ops(),
        "xformers.ops": stand_ins.xformers_ops(),
        "xformers.ops.fmha": stand_ins.xformers_biases(),
        "xformers.ops.fmha.attn_bias": stand_ins.xformers_biases(),
        "mamba_ssm": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops.triton": stand_ins.mamba_ssd_combined(),
        "mamba_ssm.ops.triton.ssd_combined": stand_ins.mamba_ssd_combined(),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adapter", [flash, memory_efficient], ids=["flash_attn", "xformers"])
def test_adapters_follow_the_packages_conventions(packages, adapter, case):
    agree(adapter.BACKEND.run, CASES[case])


def test_ssd_follows_the_packages_conventions(packages, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert mamba_ssm_available()
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=g)

    x, dt, A, B, C = draw(2, 6, 4, 3), draw(2, 6, 4).exp(), -draw(4).exp(), draw(2, 6, 2, 5), draw(2, 6, 2, 5)
    D, start = draw(4), draw(2, 4, 3, 5)
    y, final = ssd(x, dt, A, B, C, D=D, initial_states=start)
    first, middle = ssd(x[:, :2], dt[:, :2], A, B[:, :2], C[:, :2], D=D, initial_states=start)
    second, end = ssd(x[:, 2:], dt[:, 2:], A, B[:, 2:], C[:, 2:], D=D, initial_states=middle)
    close(torch.cat([first, second], 1), y)
    close(end, final)
    state = start[0, 3]  # head 3 reads group 1; the docstring's equation
    for t in range(6):
        state = torch.exp(dt[0, t, 3] * A[3]) * state + dt[0, t, 3] * torch.outer(x[0, t, 3], B[0, t, 1])
        close(y[0, t, 3], state @ C[0, t, 1] + D[3] * x[0, t, 3])
    close(final[0, 3], state)


def test_xformers_masks_mean_what_we_think():
    biases = pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is an extra")
    mask = biases.LocalAttentionFromBottomRightMask(window_left=3, window_right=0).materialize((5, 9))
    assert torch.equal(mask == 0, stand_ins.band(5, 9, 3, 0))
    mask = biases.LowerTriangularFromBottomRightMask().materialize((5, 9))
    assert torch.equal(mask == 0, stand_ins.band(5, 9, -1, 0))


MISSING = {
    "flash_attn": ("flash_attn.flash_attn_interface", "memkit[flash]"),
    "xformers": ("xformers.ops", "memkit[xformers]"),
}


@pytest.mark.parametrize("name", MISSING)
def test_asking_for_a_missing_package_says_what_to_install(monkeypatch, name):
    module, extra = MISSING[name]
    monkeypatch.setitem(sys.modules, module, None)  # import raises
    with pytest.raises(ValueError, match=rf"'{name}' is not available here: ModuleNotFoundError.*{module}") as error:
        check_backend(name)
    assert extra in str(error.value) and "backend='auto'" in str(error.value)


@pytest.mark.parametrize("name", ["flash_attn", "xformers", "flex"])
def test_packages_without_cuda_are_not_there(packages, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no CUDA device.*needs a CUDA device"):
        check_backend(name)


def test_a_package_without_the_op_is_not_there(packages, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delattr(sys.modules["flash_attn.flash_attn_interface"], "_flash_attn_backward")
    with pytest.raises(ValueError, match="AttributeError.*_flash_attn_backward"):
        check_backend("flash_attn")
    monkeypatch.delattr(sys.modules["mamba_ssm.ops.triton.ssd_combined"], "mamba_chunk_scan_combined")
    assert not mamba_ssm_available()


def test_ssd_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", None)
    assert not mamba_ssm_available()
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"mamba-ssm is not available here.*memkit\[mamba\]"):
        ssd(one, one[..., 0], -one[0, 0, 0], one, one)


def test_unknown_backend_names_the_nearest():
    with pytest.raises(ValueError, match="unknown attention backend 'flash'.*Did you mean 'flash_attn'"):
        check_backend("flash")


def test_a_probe_runs_once():
    runs = []

    def probe() -> None:
        runs.append(1)
        raise OSError("libcudart.so.12: cannot open shared object file")

    assert why_not(probe) == why_not(probe) == "OSError: libcudart.so.12: cannot open shared object file"
    assert runs == [1]


def test_auto_falls_back_to_torch_and_says_so_once(monkeypatch, caplog):
    for module, _ in MISSING.values():
        monkeypatch.setitem(sys.modules, module, None)
    call = CASES["cache, prefix"]
    with caplog.at_level(logging.INFO, logger="memkit"):
        first, second = banded_attention(call), banded_attention(call, "auto")
    assert torch.equal(first, sdpa.run(call)) and torch.equal(second, first)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "flash_attn: ModuleNotFoundError" in record.message and "xformers: " in record.message


@pytest.fixture
def choosy(monkeypatch) -> Backend:
    """A backend that is there, answers 0, and takes single tokens only."""
    backend = Backend(
        "flash_attn",
        run=lambda call: torch.zeros_like(call.q),
        probe=lambda: None,
        needs=(lambda call: None if call.q.shape[2] == 1 else "it takes one token",),
    )
    monkeypatch.setitem(BACKENDS, "flash_attn", backend)
    return backend


@pytest.mark.parametrize(("name", "level"), [("auto", logging.INFO), ("flash_attn", logging.WARNING)])
def test_a_call_that_a_backend_cannot_take_goes_to_torch(choosy, monkeypatch, caplog, name, level):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert not banded_attention(CASES["one token"], name).any()
    with caplog.at_level(logging.INFO, logger="memkit"):
        for _ in range(2):
            assert torch.equal(banded_attention(CASES["blocks"], name), sdpa.run(CASES["blocks"]))
    (record,) = caplog.records
    assert record.levelno == level and "it takes one token" in record.message


def test_kernels_say_which_calls_they_cannot_take():
    call = CASES["cache"]
    for backend in (flash.BACKEND, memory_efficient.BACKEND, flex.BACKEND):
        assert "the tensors are on cpu" in str(backend.refusal(call))

    def reasons(backend: Backend, **changes: object) -> list[str]:
        return [str(r) for need in backend.needs[1:] if (r := need(replace(call, **changes)))]

    half = torch.zeros(2, 3, 9, 16, dtype=torch.bfloat16)
    assert reasons(flash.BACKEND, q=half) == []
    assert reasons(flash.BACKEND, q=half.float()) == ["the kernel takes bfloat16 and float16, not torch.float32"]
    (reason,) = reasons(flash.BACKEND, q=half, first=torch.tensor([1, 2]))
    assert "different numbers of cached tokens" in reason
    assert reasons(flash.BACKEND, q=half[..., :12]) == ["head width 12 is not a multiple of 8 up to 256"]
    assert reasons(flex.BACKEND, q=half, first=torch.tensor([1, 2])) == []
    assert reasons(flex.BACKEND, q=half.double()) == ["the kernel takes no float64"]
    assert reasons(flex.BACKEND, q=half[..., :12]) == ["head width 12 is not a power of two from 16 on"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["flash_attn", "xformers", "flex"])
def test_kernels_on_a_gpu_agree_with_torch(name):
    if reason := why_not(BACKENDS[name].probe):
        pytest.skip(reason)
    for case in CASES.values():
        wide = {n: getattr(case, n).detach().repeat(1, 1, 1, 2).to("cuda", torch.bfloat16) for n in TENSORS}
        call = replace(case, **{n: x.requires_grad_() for n, x in wide.items()})
        assert BACKENDS[name].refusal(call) is None
        y = BACKENDS[name].run(call)
        reference = sdpa.run(replace(call, **{n: x.double() for n, x in wide.items()}))
        close(y.double(), reference, 2e-2)
        inputs = [x for x in wide.values() if x.numel()]
        for a, b in zip(
            torch.autograd.grad(y.double().square().sum(), inputs),
            torch.autograd.grad(reference.square().sum(), inputs),
            strict=True,
        ):
            close(a.double(), b.double(), 4e-2)
