"""Stand-ins for kernel packages that need CUDA: their documented conventions, in plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor


def band(queries: int, keys: int, left: int, right: int) -> Tensor:
    """Visible pairs [T, S]: query t stands at key S - T + t and sees `left` back and `right` ahead (-1: all)."""
    visible = torch.zeros(queries, keys, dtype=torch.bool)
    for t in range(queries):
        here = keys - queries + t
        low = 0 if left < 0 else max(0, here - left)
        high = keys if right < 0 else here + right + 1
        visible[t, low:high] = True
    return visible


def dense(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over q [B, T, H, K], k, v [B, S, H, K]: the output and the log-sum-exp [B, H, T]."""
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    lse = scores.logsumexp(-1)
    return torch.einsum("bhts,bshd->bthd", (scores - lse[..., None]).exp(), v), lse


def dense_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a flash backward computes, literally, from the output and log-sum-exp that it is given."""
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    p = (scores - lse[..., None]).exp().masked_fill(~visible, 0.0)
    dv = torch.einsum("bhts,bthd->bshd", p, grad)
    dp = torch.einsum("bthd,bshd->bhts", grad, v)
    ds = p * (dp - (grad * out).sum(-1).transpose(1, 2)[..., None]) * scale
    return torch.einsum("bhts,bshd->bthd", ds, k), torch.einsum("bhts,bthd->bshd", ds, q), dv


def flash_attn_interface() -> SimpleNamespace:
    """flash_attn.flash_attn_interface, version 2.8: the parts that an adapter may use."""

    def flash_attn_func(
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
    ):
        assert dropout_p == 0.0 and softcap == 0.0 and alibi_slopes is None
        left, right = window_size
        visible = band(q.shape[1], k.shape[1], left, 0 if causal else right)
        return dense(q, k, v, visible, q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)[0]

    def _flash_attn_forward(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        return_softmax,
    ):
        assert dropout_p == 0.0 and softcap == 0.0 and alibi_slopes is None and not return_softmax
        visible = band(q.shape[1], k.shape[1], window_size_left, 0 if causal else window_size_right)
        out, lse = dense(q, k, v, visible, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        assert dropout_p == 0.0 and softcap == 0.0 and alibi_slopes is None
        assert all(x.is_contiguous() for x in (dq, dk, dv))
        visible = band(q.shape[1], k.shape[1], window_size_left, 0 if causal else window_size_right)
        for to, grad in zip(
            (dq, dk, dv), dense_backward(dout, q, k, v, out, softmax_lse, visible, softmax_scale), strict=True
        ):
            to.copy_(grad)
        return torch.empty(0)

    return SimpleNamespace(
        flash_attn_func=flash_attn_func,
        _flash_attn_forward=_flash_attn_forward,
        _flash_attn_backward=_flash_attn_backward,
    )


def xformers_biases() -> SimpleNamespace:
    """xformers.ops.fmha.attn_bias: mask objects that begin at the bottom right."""

    class LocalAttentionFromBottomRightMask:
        def __init__(self, window_left, window_right):
            self.reach = (window_left, window_right)

    class LowerTriangularFromBottomRightMask:
        reach = (-1, 0)

    return SimpleNamespace(
        LocalAttentionFromBottomRightMask=LocalAttentionFromBottomRightMask,
        LowerTriangularFromBottomRightMask=LowerTriangularFromBottomRightMask,
    )


def xformers_ops() -> SimpleNamespace:
    """xformers.ops: attention, and its two halves; the forward pads its log-sum-exp to multiples of 32."""

    def visible(q, k, attn_bias):
        return band(q.shape[1], k.shape[1], *((-1, -1) if attn_bias is None else attn_bias.reach))

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        return dense(query, key, value, visible(query, key, attn_bias), query.shape[-1] ** -0.5)[0]

    def memory_efficient_attention_forward_requires_grad(
        query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None
    ):
        out, lse = dense(query, key, value, visible(query, key, attn_bias), query.shape[-1] ** -0.5)
        return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))

    def memory_efficient_attention_backward(
        grad, output, lse, query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None
    ):
        lse = lse[..., : query.shape[1]]
        mask = visible(query, key, attn_bias)
        return dense_backward(grad, query, key, value, output, lse, mask, query.shape[-1] ** -0.5)

    return SimpleNamespace(
        memory_efficient_attention=memory_efficient_attention,
        memory_efficient_attention_forward_requires_grad=memory_efficient_attention_forward_requires_grad,
        memory_efficient_attention_backward=memory_efficient_attention_backward,
    )


def mamba_ssd_combined() -> SimpleNamespace:
    """mamba_ssm.ops.triton.ssd_combined, version 2.2: the recurrence, token by token."""

    def mamba_chunk_scan_combined(
        x,
        dt,
        A,
        B,
        C,
        chunk_size,
        D=None,
        z=None,
        dt_bias=None,
        initial_states=None,
        seq_idx=None,
        cu_seqlens=None,
        dt_softplus=False,
        dt_limit=(0.0, float("inf")),
        return_final_states=False,
        return_varlen_states=False,
    ):
        assert not dt_softplus and dt_bias is None and return_final_states
        batch, tokens, heads, width = x.shape
        assert B.shape == C.shape and heads % B.shape[2] == 0 and A.shape == (heads,) and dt.shape == x.shape[:3]
        shape, dtype = (batch, heads, width, B.shape[-1]), torch.promote_types(x.dtype, torch.float32)
        assert initial_states is None or initial_states.shape == shape
        state = x.new_zeros(shape, dtype=dtype) if initial_states is None else initial_states.to(dtype)
        b, c = (t.repeat_interleave(heads // t.shape[2], 2) for t in (B, C))
        outputs = []
        for t in range(tokens):
            write = dt[:, t, :, None, None] * x[:, t, :, :, None] * b[:, t, :, None, :]
            state = torch.exp(dt[:, t] * A)[..., None, None] * state + write
            outputs.append((state * c[:, t, :, None, :]).sum(-1))
        y = torch.stack(outputs, 1)
        return (y if D is None else y + D[:, None] * x).to(x.dtype), state  # as the kernel: the state is not rounded

    return SimpleNamespace(mamba_chunk_scan_combined=mamba_chunk_scan_combined)
