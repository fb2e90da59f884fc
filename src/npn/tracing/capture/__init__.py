"""Run a forward pass on fake tensors and record it as a graph: each ATen op that runs, and the user's line that asks.

`graph` is the entry. `environment` says what holds meanwhile; `known_values` and `made_up` answer code that decides by
values; `warming` runs the model for real, once, before it is captured.
"""
