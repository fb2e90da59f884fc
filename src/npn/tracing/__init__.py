"""Label tracing: find the units of a model that can be resized, from the model and example inputs. Knows no gates.

The entry is `trace`. From the bottom: `capture` records a graph; `labels` says which unit each element of a value is
of; `rules` says what an op does to labels; `grouping` walks the graph by them and makes groups; `one_trace` runs these
at given shapes; `rehearsal` does so at other sizes, and freezes those that the code does not allow; `modes` looks at
train and eval mode, and `both_modes` freezes what they do not agree on; `branches`, `columns` and `single_weights` find
the other parts that can have gates.
"""

from npn.tracing.rehearsal.removal_check import why_not
from npn.tracing.rehearsal.retrace import grown, shrunk
from npn.tracing.trace import trace

__all__ = ["grown", "shrunk", "trace", "why_not"]
