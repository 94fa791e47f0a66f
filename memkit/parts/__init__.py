"""The parts of rules: memories, objectives, optimizers, retentions and gradient points."""
