"""The kernels of `triton_dual`: tape and fold of all blocks of a call, forward and backward, one program a row.

A row is a head of a batch row. What its blocks hand on is all that has to be done one block after the other; in the
words of `dual`, for a memory silu(x W1) W2 and errors that are h * prediction + r:

    tape    z = k A1,  a = silu(z),  e = h * (a A2) + r,  d = e A2^T,  g = d * silu'(z)
    fold    W1 <- c_ww W1 + c_ws S1 + k^T (l_w * g),  S1 <- c_sw W1 + c_ss S1 + k^T (l_s * g);  W2, S2 from a and e

A program takes a slice of the hidden units at a time, as slices need each other for sums only: for the prediction
a A2 forward, and for the error's gradient backward. Hence two passes over the slices in every block.

Shapes: k, r, e, predictions `[N, blocks, L, D]`; a, g `[N, blocks, L, HIDDEN]`; `numbers` `[N, blocks, 3, L]`: l_w, l_s,
h; `folding` `[N, blocks, 4]`: c_ww, c_ws, c_sw, c_ss. Matrices are `[D, HIDDEN]`, those of the second layer transposed.
`states` `[N, 1 + blocks + 1, 4, D, HIDDEN]`: what the gradients of block 0 see (A1, A2 and nothing), then
W1, W2, S1, S2 before each block, whose W1, W2 are what the gradients of all later blocks see, and after the last.

Tiles are loaded again where they are needed: the registers of a program of 4 warps hold 8 of 64 x 64 numbers.
"""
# pyright: basic, reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def _silu(z):
    """silu, its slope, and the slope of that."""
    p = tl.sigmoid(z)
    return z * p, p * (1 + z * (1 - p)), p * (1 - p) * (2 + z * (1 - 2 * p))


@triton.jit
def _tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of the first columns of a matrix that is `WIDTH` wide."""
    return tl.arange(0, ROWS)[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _numbers(numbers, L: tl.constexpr):
    """l_w, l_s and h of a block's tokens, `[L, 1]` each."""
    each = numbers + tl.arange(0, L)[:, None]
    return tl.load(each), tl.load(each + L), tl.load(each + 2 * L)


@triton.jit
def _times(a, b, PRECISION: tl.constexpr):
    """a b."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _plus(c, a, b, PRECISION: tl.constexpr):
    """c + a b."""
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def forward(
    k,
    r,
    numbers,
    folding,
    states,
    predictions,
    e,
    a,
    g,
    blocks,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill predictions, e, a, g, and `states` from its third on."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    row = tl.program_id(0).to(tl.int64)
    for j in range(blocks):
        block = row * blocks + j
        here, there = block * L * D, block * L * HIDDEN
        now = states + (row * (blocks + 2) + 1 + j) * 4 * SIZE
        anchor = now - tl.where(j == 0, 4 * SIZE, 0)
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        c_ww, c_ws = tl.load(folding + 4 * block), tl.load(folding + 4 * block + 1)
        c_sw, c_ss = tl.load(folding + 4 * block + 2), tl.load(folding + 4 * block + 3)

        prediction = tl.zeros_like(tl.load(r + here + token))
        for s in range(0, HIDDEN, SLICE):
            hidden, _, _ = _silu(_times(tl.load(k + here + token), tl.load(anchor + s + part), PRECISION))
            tl.store(a + there + s + unit, hidden)
            prediction = _plus(prediction, hidden, tl.trans(tl.load(anchor + SIZE + s + part)), PRECISION)
        tl.store(predictions + here + token, prediction)
        tl.store(e + here + token, h * prediction + tl.load(r + here + token))
        tl.debug_barrier()  # threads read what others have written

        for s in range(0, HIDDEN, SLICE):
            old, new = now + s + part, now + 4 * SIZE + s + part
            _, slope, _ = _silu(_times(tl.load(k + here + token), tl.load(anchor + s + part), PRECISION))
            error = _times(tl.load(e + here + token), tl.load(anchor + SIZE + s + part), PRECISION) * slope
            tl.store(g + there + s + unit, error)
            into = tl.trans(tl.load(k + here + token))
            w, m = tl.load(old), tl.load(old + 2 * SIZE)
            tl.store(new, _plus(c_ww * w + c_ws * m, into, l_w * error, PRECISION))
            tl.store(new + 2 * SIZE, _plus(c_sw * w + c_ss * m, into, l_s * error, PRECISION))
            into, hidden = tl.trans(tl.load(e + here + token)), tl.load(a + there + s + unit)
            w, m = tl.load(old + SIZE), tl.load(old + 3 * SIZE)
            tl.store(new + SIZE, _plus(c_ww * w + c_ws * m, into, l_w * hidden, PRECISION))
            tl.store(new + 3 * SIZE, _plus(c_sw * w + c_ss * m, into, l_s * hidden, PRECISION))
        tl.debug_barrier()


@triton.jit
def _back_through_fold(matrix, gradient, c_ww, c_ws, c_sw, c_ss, SIZE: tl.constexpr):
    """One layer's share of the gradients of c_ww, c_ws, c_sw, c_ss; what it began with gets its gradient, too.

    matrix, gradient: addresses of W before the block and of its gradient; those of what is left lie behind.
    """
    w, m = tl.load(matrix), tl.load(matrix + 2 * SIZE)
    grad_w, grad_m = tl.load(gradient + 4 * SIZE), tl.load(gradient + 6 * SIZE)
    tl.store(gradient, tl.load(gradient) + c_ww * grad_w + c_sw * grad_m)
    tl.store(gradient + 2 * SIZE, tl.load(gradient + 2 * SIZE) + c_ws * grad_w + c_ss * grad_m)
    return tl.sum(grad_w * w), tl.sum(grad_w * m), tl.sum(grad_m * w), tl.sum(grad_m * m)


@triton.jit
def _back_through_write(x, y, grad, l_w, l_s, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Of a write x^T (l * y): the gradient at y `[L, SLICE]`, and at l_w, l_s `[L, 1]`.

    grad: addresses of the gradient of W after the block.
    """
    by_w, by_s = _times(x, tl.load(grad), PRECISION), _times(x, tl.load(grad + 2 * SIZE), PRECISION)
    return l_w * by_w + l_s * by_s, tl.sum(y * by_w, 1, keep_dims=True), tl.sum(y * by_s, 1, keep_dims=True)


@triton.jit
def _back_to_input(total, y, grad, l_w, l_s, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """total `[L, D]` and the gradient at the x of such a write."""
    total = _plus(total, l_w * y, tl.trans(tl.load(grad)), PRECISION)
    return _plus(total, l_s * y, tl.trans(tl.load(grad + 2 * SIZE)), PRECISION)


@triton.jit
def _back_to_anchor(
    grad_k,
    k,
    e,
    a,
    grad_prediction,
    anchor,
    grad_anchor,
    scratch,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through prediction, z and d to A1, A2 and the keys; scratch: of z but for the prediction, of d, the slope."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    for s in range(0, HIDDEN, SLICE):
        grad_a = _times(tl.load(grad_prediction + token), tl.load(anchor + SIZE + s + part), PRECISION)
        grad_z = grad_a * tl.load(scratch + 2 * L * HIDDEN + s + unit) + tl.load(scratch + s + unit)
        grad_k = _plus(grad_k, grad_z, tl.trans(tl.load(anchor + s + part)), PRECISION)
        grad_1 = _times(tl.trans(tl.load(k + token)), grad_z, PRECISION)
        tl.store(grad_anchor + s + part, tl.load(grad_anchor + s + part) + grad_1)
        grad_d = tl.load(scratch + L * HIDDEN + s + unit)
        grad_2 = _times(tl.trans(tl.load(e + token)), grad_d, PRECISION)
        grad_2 = _plus(grad_2, tl.trans(tl.load(grad_prediction + token)), tl.load(a + s + unit), PRECISION)
        tl.store(grad_anchor + SIZE + s + part, tl.load(grad_anchor + SIZE + s + part) + grad_2)
    return grad_k


@triton.jit
def _back_to_errors(
    k,
    e,
    a,
    g,
    grad_a,
    grad_g,
    l_w,
    l_s,
    c_ww,
    c_ws,
    c_sw,
    c_ss,
    anchor,
    now,
    grad_now,
    scratch,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Through fold, g and d: gradients at k and e but for the prediction, l_w, l_s, and the four of the fold."""
    SIZE: tl.constexpr = D * HIDDEN
    token, unit, part = _tile(L, D, D), _tile(L, SLICE, HIDDEN), _tile(D, SLICE, HIDDEN)
    at_k = tl.zeros_like(tl.load(k + token))
    at_e, at_w, at_s = at_k, tl.zeros_like(l_w), tl.zeros_like(l_w)
    ww, ws, sw, ss = c_ww * 0, c_ww * 0, c_ww * 0, c_ww * 0
    for s in range(0, HIDDEN, SLICE):
        left = grad_now + 4 * SIZE + s + part
        error, hidden = tl.load(g + s + unit), tl.load(a + s + unit)
        to_g, to_w, to_s = _back_through_write(tl.load(k + token), error, left, l_w, l_s, SIZE, PRECISION)
        at_k = _back_to_input(at_k, error, left, l_w, l_s, SIZE, PRECISION)
        at_w, at_s = at_w + to_w, at_s + to_s
        to_a, to_w, to_s = _back_through_write(tl.load(e + token), hidden, left + SIZE, l_w, l_s, SIZE, PRECISION)
        at_e = _back_to_input(at_e, hidden, left + SIZE, l_w, l_s, SIZE, PRECISION)
        at_w, at_s = at_w + to_w, at_s + to_s
        _, slope, curve = _silu(_times(tl.load(k + token), tl.load(anchor + s + part), PRECISION))
        d = _times(tl.load(e + token), tl.load(anchor + SIZE + s + part), PRECISION)
        to_g += tl.load(grad_g + s + unit)
        to_a += tl.load(grad_a + s + unit)
        tl.store(scratch + s + unit, to_a * slope + to_g * d * curve)
        tl.store(scratch + L * HIDDEN + s + unit, to_g * slope)
        tl.store(scratch + 2 * L * HIDDEN + s + unit, slope)
        at_e = _plus(at_e, to_g * slope, tl.trans(tl.load(anchor + SIZE + s + part)), PRECISION)
        to_ww, to_ws, to_sw, to_ss = _back_through_fold(now + s + part, grad_now + s + part, c_ww, c_ws, c_sw, c_ss, SIZE)
        ww, ws, sw, ss = ww + to_ww, ws + to_ws, sw + to_sw, ss + to_ss
        second = SIZE + s + part
        to_ww, to_ws, to_sw, to_ss = _back_through_fold(now + second, grad_now + second, c_ww, c_ws, c_sw, c_ss, SIZE)
        ww, ws, sw, ss = ww + to_ww, ws + to_ws, sw + to_sw, ss + to_ss
    return at_k, at_e, at_w, at_s, ww, ws, sw, ss


@triton.jit
def backward(
    k,
    numbers,
    folding,
    states,
    predictions,
    e,
    a,
    g,
    grad_states,
    grad_e,
    grad_a,
    grad_g,
    grad_k,
    grad_r,
    grad_numbers,
    grad_folding,
    grad_predictions,
    scratch,
    blocks,
    L: tl.constexpr,
    D: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLICE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill grad_k, grad_r, grad_numbers and grad_folding, and turn `grad_states` from what arrives into the whole.

    grad_predictions `[N, blocks, L, D]` and scratch `[N, 3, L, HIDDEN]` are for the kernel's own use.
    """
    SIZE: tl.constexpr = D * HIDDEN
    token, each = _tile(L, D, D), tl.arange(0, L)[:, None]
    row = tl.program_id(0).to(tl.int64)
    scratch += row * 3 * L * HIDDEN
    for step in range(blocks):
        j = blocks - 1 - step
        block = row * blocks + j
        here, there, state = block * L * D, block * L * HIDDEN, (row * (blocks + 2) + 1 + j) * 4 * SIZE
        anchor = state - tl.where(j == 0, 4 * SIZE, 0)
        l_w, l_s, h = _numbers(numbers + block * 3 * L, L)
        c_ww, c_ws = tl.load(folding + 4 * block), tl.load(folding + 4 * block + 1)
        c_sw, c_ss = tl.load(folding + 4 * block + 2), tl.load(folding + 4 * block + 3)
        at_k, at_e, at_w, at_s, ww, ws, sw, ss = _back_to_errors(
            k + here, e + here, a + there, g + there, grad_a + there, grad_g + there, l_w, l_s, c_ww, c_ws, c_sw, c_ss,
            states + anchor, states + state, grad_states + state, scratch, L, D, HIDDEN, SLICE, PRECISION,
        )  # fmt: skip
        at_e += tl.load(grad_e + here + token)
        tl.store(grad_r + here + token, at_e)
        tl.store(grad_predictions + here + token, h * at_e)
        each_number = grad_numbers + block * 3 * L + each
        tl.store(each_number, at_w)
        tl.store(each_number + L, at_s)
        tl.store(each_number + 2 * L, tl.sum(at_e * tl.load(predictions + here + token), 1, keep_dims=True))
        tl.store(grad_folding + 4 * block, ww)
        tl.store(grad_folding + 4 * block + 1, ws)
        tl.store(grad_folding + 4 * block + 2, sw)
        tl.store(grad_folding + 4 * block + 3, ss)
        tl.debug_barrier()  # threads read what others have written
        at_k = _back_to_anchor(
            at_k, k + here, e + here, a + there, grad_predictions + here, states + anchor, grad_states + anchor, scratch,
            L, D, HIDDEN, SLICE, PRECISION,
        )  # fmt: skip
        tl.store(grad_k + here + token, at_k)
        tl.debug_barrier()
