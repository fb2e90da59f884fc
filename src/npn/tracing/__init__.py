"""Label tracing: find the units of a model that can be resized, from the model and example inputs. Knows no gates.

The entry is `trace`. The modules, from the bottom: `capture` records the graph; `walk` propagates labels by the op
rules in `rules` and beside it; `groups` resolves labels into units; `single` runs these three at given shapes;
`retrace` does so at other sizes; `modes` chooses train or eval mode; `dry_run` freezes sizes that code hard-codes;
`branches` and `columns` find the other parts that can have gates.
"""

from npn.tracing.retrace import grown, shrunk
from npn.tracing.trace import trace

__all__ = ["grown", "shrunk", "trace"]
