"""Label tracing: from a model and an example to the units that can be resized. Knows nothing of gates.

One entry: `trace`. Inside, from the bottom: `capture` records the graph, `walk` propagates labels by `rules`, `groups`
resolves them into units, `single` does the three at given shapes, `retrace` at other sizes; `modes` chooses the mode,
`dry_run` freezes what code hard-codes, `branches` and `columns` find what else can have gates.
"""

from npn.tracing.retrace import grown
from npn.tracing.trace import trace

__all__ = ["grown", "trace"]
