"""Attention backends: results, the merge against dense attention, and conventions of packages by stand-ins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import stand_ins
from backend_calls import CASES, RAGGED, TENSORS, agree, question
from compare import BFLOAT16, near
from memkit.mixers.backends import BACKENDS, flash, flex, memory_efficient, merging, sdpa
from memkit.mixers.backends.mamba import ssd
from memkit.mixers.backends.probes import why_not
from memkit.testing import same

pytestmark = pytest.mark.usefixtures("fresh_probes")


@pytest.mark.parametrize("case", [*CASES, *RAGGED])
def test_torch_answers_the_definition(case):
    agree(sdpa.run, {**CASES, **RAGGED}[case])


@pytest.mark.parametrize("case", ["cache, prefix", "blocks", "no window, cache, prefix", "rows differ"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_forward_answers_the_definition(case):
    with torch.no_grad():  # on a CPU it has no backward
        call = {**CASES, **RAGGED}[case]
        call = replace(call, **{name: getattr(call, name).detach() for name in TENSORS})
        near(flex.run(call), sdpa.run(call))


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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adapter", [flash, memory_efficient], ids=["flash_attn", "xformers"])
def test_adapters_follow_the_packages_conventions(packages, adapter, case):
    agree(adapter.BACKEND.run, CASES[case])


def test_ssd_follows_the_packages_conventions(packages):
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=g)

    x, dt, A, B, C = draw(2, 6, 4, 3), draw(2, 6, 4).exp(), -draw(4).exp(), draw(2, 6, 2, 5), draw(2, 6, 2, 5)
    D, start = draw(4), draw(2, 4, 3, 5)
    y, final = ssd(x, dt, A, B, C, D=D, initial_states=start)
    first, middle = ssd(x[:, :2], dt[:, :2], A, B[:, :2], C[:, :2], D=D, initial_states=start)
    second, end = ssd(x[:, 2:], dt[:, 2:], A, B[:, 2:], C[:, 2:], D=D, initial_states=middle)
    near(torch.cat([first, second], 1), y)
    near(end, final)
    state = start[0, 3]  # head 3 reads group 1; the docstring's equation
    for t in range(6):
        state = torch.exp(dt[0, t, 3] * A[3]) * state + dt[0, t, 3] * torch.outer(x[0, t, 3], B[0, t, 1])
        near(y[0, t, 3], state @ C[0, t, 1] + D[3] * x[0, t, 3])
    near(final[0, 3], state)


def test_xformers_masks_mean_what_we_think():
    biases = pytest.importorskip("xformers.ops.fmha.attn_bias", reason="xformers is an extra")
    mask = biases.LocalAttentionFromBottomRightMask(window_left=3, window_right=0).materialize((5, 9))
    assert torch.equal(mask == 0, stand_ins.band(5, 9, 3, 0))
    mask = biases.LowerTriangularFromBottomRightMask().materialize((5, 9))
    assert torch.equal(mask == 0, stand_ins.band(5, 9, -1, 0))


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
        same("y", y.double(), reference, BFLOAT16)
        inputs = [x for x in wide.values() if x.numel()]
        for a, b in zip(
            torch.autograd.grad(y.double().square().sum(), inputs),
            torch.autograd.grad(reference.square().sum(), inputs),
            strict=True,
        ):
            same("a gradient", a.double(), b.double(), 2 * BFLOAT16)
