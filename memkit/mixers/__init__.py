"""Sequence components with one contract."""
