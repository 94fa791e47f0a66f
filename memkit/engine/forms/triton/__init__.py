"""The form `triton`: `dual` with kernels. Never chosen by `auto`, and not yet measured on a GPU."""
