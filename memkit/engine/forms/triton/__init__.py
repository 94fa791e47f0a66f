"""The triton form: `dual` with a kernel. Never chosen by itself, and not yet measured on a GPU."""
