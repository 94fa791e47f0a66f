"""The choice of an attention backend: by name or by probes that run, and its explanation."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import torch

import memkit
from backend_calls import CASES
from memkit.mixers.backends import (
    BACKENDS,
    SCAN,
    Backend,
    banded_attention,
    check_backend,
    flash,
    flex,
    memory_efficient,
    sdpa,
)
from memkit.mixers.backends.probes import forget, why_not

pytestmark = pytest.mark.usefixtures("fresh_probes")

MISSING = {
    "flash_attn": ("flash_attn.flash_attn_interface", "'.[flash]'"),
    "xformers": ("xformers.ops", "'.[xformers]'"),
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
    check_backend("mamba_ssm", SCAN)
    forget()
    monkeypatch.delattr(sys.modules["mamba_ssm.ops.triton.ssd_combined"], "mamba_chunk_scan_combined")
    with pytest.raises(ValueError, match="AttributeError.*mamba_chunk_scan_combined"):
        check_backend("mamba_ssm", SCAN)


def test_the_scan_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", None)
    with pytest.raises(ValueError, match=r"mamba2 backend 'mamba_ssm' is not available here.*'\.\[mamba\]'.*'auto'"):
        memkit.build("mixer", "mamba2", dim=8, backend="mamba_ssm")
    with pytest.raises(ValueError, match="unknown mamba2 backend 'mamba'.*Did you mean 'mamba_ssm'.*auto, mamba_ssm"):
        memkit.build("architecture", "mamba2", vocab_size=7, dim=8, backend="mamba")


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
