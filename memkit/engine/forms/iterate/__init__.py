"""The iterate form: exact online learning of deep memories in parallel, by fixed-point iteration."""
