"""The fused form: each run of equal blocks as one autograd node, its backward pass written by hand."""
