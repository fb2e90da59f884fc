"""Label tracing: find the units of a model that can be resized, from the model and example inputs. Knows no gates.

The entry is `trace`. The modules, from the bottom: `capture` records the graph; `walk` propagates labels by the op
rules in `rules` and beside it; `groups` resolves labels into units; `single` runs these three at given shapes;
`retrace` does so at other sizes; `modes` looks at train and eval mode, and `both_modes` freezes what they do not agree
on; `dry_run` freezes sizes that code hard-codes; `removal_check` looks once more before units go; `branches` and
`columns` find the other parts that can have gates.
"""

from npn.tracing.removal_check import why_not
from npn.tracing.retrace import grown, shrunk
from npn.tracing.trace import trace

__all__ = ["grown", "shrunk", "trace", "why_not"]
