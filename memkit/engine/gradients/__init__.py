"""Backward passes written by hand, shared by the forms `fused` and `iterate`."""
