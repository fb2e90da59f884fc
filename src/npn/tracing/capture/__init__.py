"""Run a forward pass on fake tensors and record it as a graph: each ATen op that runs, and the user's line that asks.

`graph` is the entry, `recorder` makes the nodes, and `lines` says where the user's code asks for each. `environment` is
what holds meanwhile, by `patching`, `packed`, `tensor_methods` and `restoring`; `bare` and `norm_calls` mark nodes by
the module that runs; `known_values` and `made_up` answer code that decides by values; `shapes_only` is quicker where no
graph is wanted. `warming` runs the model for real before, and `calls` says what it calls. `deadline` ends a trace,
`failures` explains why there is none.
"""
