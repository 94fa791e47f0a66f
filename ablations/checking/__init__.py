"""`memkit check`: rules, mixers and architectures tested against their laws from the shell.

This room, the command line and `ablations.display.verdicts` alone know `memkit.testing` in this storey.
"""
