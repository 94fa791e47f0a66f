"""Backward passes written by hand, shared by the forms `fused` and `iterate`.

`products`: reading and folding with transposed carries. `vjp`: the gradients of both. `segments`: a memory cut at its
products. `reading`: queries, forward and backward.
"""
