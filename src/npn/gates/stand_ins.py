"""Where every gate is closed, the likeliest one counts as open: through a resize it stays the one, or nothing does."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from npn._utils import cpu
from npn.gates.gate import OPEN
from npn.gates.gates import Gates
from npn.surgery import Plan, forget_momentum


def stand_ins(gates: Gates) -> dict[str, tuple[Tensor, ...]]:
    """Name of each group and parameter without an open gate -> where along each axis the one is that stands in."""
    if gates.decision is not None:
        return {}
    found = {}
    for name, gate in zip(gates.all_names, gates.each, strict=True):
        index = gate.stand_in
        if len(index):
            found[name] = torch.unravel_index(index.cpu(), gate.logits.shape)
    return found


def keep_stand_ins(
    gates: Gates,
    before: Mapping[str, tuple[Tensor, ...]],
    plan: Plan,
    tensors: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
) -> None:
    """Open what stood in beside new gates, which are open; a closed weight that stands in for lost ones starts at zero.

    Args:
        gates: after the resize.
        before: what `stand_ins` gave before it.
        plan: of the resize.
        tensors: name -> tensor of the model.
        optimizers: that may hold weights and logits.
    """
    single, now = gates.unstructured, dict(zip(gates.all_names, gates.each, strict=True))
    kept = dict[str, bool]()
    for name, position in before.items():
        if name not in now:
            continue
        gate = now[name]
        sources = plan.sources.get(name, {}) if name in single else {0: plan.units[name]} if name in plan.units else {}
        found = [(sources[a].cpu() == p).nonzero()[:, 0] if a in sources else p for a, p in enumerate(position)]
        kept[name] = all(len(places) for places in found)
        if kept[name] and gate.open_by_rule.any():
            flat = cpu.arange(gate.logits.numel()).view(gate.logits.shape)[tuple(found)]
            gates.set(name, flat.to(gate.logits.device), OPEN, optimizers)
    for name, gate in single.items() if gates.decision is None else ():
        if len(gate.stand_in) and not kept.get(name, False):  # all open ones are gone
            weight, closed = tensors[name], gate.mask & ~gate.open_by_rule
            with torch.no_grad():
                weight.masked_fill_(closed, 0)
            forget_momentum(optimizers, weight, closed)
