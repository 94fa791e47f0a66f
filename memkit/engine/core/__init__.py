"""The heart: from a rule to blocks of matrix products. Read in this order.

`rows`: a state with batch and heads as one axis. `tape`: the gradients of a block's writes, never formed.
`coefficients`: the update, unrolled by probing it with units. `block`: reading and folding through coefficients.
Beside the heart: `doubling` and `unrolled` (coefficients, faster), `surprise` (gradient norms), `memory_checks`,
`window` (the Omega rule), `channels` (gates per key channel), `affine` (errors to solve for), `obstacles` (reasons
against unrolling a rule), `memory_state` (the public state).
"""
