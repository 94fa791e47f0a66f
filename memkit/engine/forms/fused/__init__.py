"""The fused form: all blocks of a call as one autograd node, its backward pass written by hand."""
