"""The rules of the field, one file each: docstring = equation, symbols, source."""
