"""What each ATen op does to units: data movement runs the very op on the labels; the rest is merge, mix or contract.

Keys are ATen names without overload. Ops tagged pointwise need no rule, see `elementwise`; an op with neither freezes
what it touches. What depends on no input and no parameter is computed, see `constants`.
"""

from npn.tracing.rules import convolution, indexing, matmul, mixing, movement, products
from npn.tracing.rules.call import Call, Rules, unknown
from npn.tracing.rules.elementwise import pointwise

_MODULES = (movement, convolution, matmul, mixing, indexing, products)
RULES = Rules({name: rule for module in _MODULES for name, rule in module.RULES.items()})
MOVEMENT = frozenset(["diagonal", *movement.RULES])

__all__ = ["MOVEMENT", "RULES", "Call", "Rules", "pointwise", "unknown"]
