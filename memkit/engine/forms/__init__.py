"""The forms: each runs any rule that it fits, and all that fit a rule give the same numbers."""
