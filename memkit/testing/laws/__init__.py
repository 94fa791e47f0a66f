"""The laws. A law is a function `law(component, problem)`, and its docstring is its equation.

of_rules, of_mixers   the tables: names, hints, and the components that a law is for
forms                 the forms of the engine, cuts, decoding, causality
state                 the state as a value, its size, files
rows                  rows, heads, masked tokens and documents apart
gates, parts          neutral gates, declared linearity, shapes, finite numbers
gradients             first and second gradients, descent
precision             float32
sequences             everything of mixers and language models
"""
