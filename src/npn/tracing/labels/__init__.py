"""Label tensors: the unit of each element of a value, and the ledger of labels that are one unit.

From the bottom: `parts` are label tensors, and `joining` decides which labels are one unit; `ledger` records what ops
do; `value` has the parts of one value, `places` says whether an op treats all units alike, `coupler` unites coupled
axes; `merging` is elementwise ops, `contracting` reductions and products.
"""

from npn.tracing.labels.contracting import OPAQUE, contract, fixed_input, reduce
from npn.tracing.labels.ledger import KERNEL, Ledger, Normed
from npn.tracing.labels.merging import Zero, merge, restrict, with_repeats
from npn.tracing.labels.parts import Part, canonical, overlaid, squeeze_constant, varying
from npn.tracing.labels.value import Value

__all__ = [
    "KERNEL", "OPAQUE", "Ledger", "Normed", "Part", "Value", "Zero", "canonical", "contract", "fixed_input", "merge",
    "overlaid", "reduce", "restrict", "squeeze_constant", "varying", "with_repeats",
]  # fmt: skip
