"""The parts that rules are made of: memories, objectives, optimizers, retentions and gradient points."""
