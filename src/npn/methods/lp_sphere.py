"""Gates on an Lp sphere, moved in its dual space; small gates are masked and may come back."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from npn import functional
from npn._utils.collectives import average_
from npn._utils.validation import whole_number
from npn.functional.lp_sphere import check_p, conjugate
from npn.gates import UnitGroup
from npn.methods.method import Method, positive, share
from npn.plasticity import Plasticity

DROP, ADAPT, RETURNED = 0.2, 0.1, 0.95  # threshold at the start, adaptation of the share that returns, its start
FIRST, LAST = 0.2, 0.8  # of the training, between which the topology changes


@final
class LpSphere(Method):
    """Gates on an Lp sphere: near p = 1 its geometry makes most of them small, and small gates are masked.

    The gates z of a group have ``||z||_p = n^(1/p)`` and start at 1. Each `after_step` takes a step in the dual
    space, on ``v = sign(z) |z|^(p-1)`` scaled to ``||v||_q = 1``, with the Nesterov momentum d of dL/dz: ``v <-
    normalised_q((1 - rate) v - rate d / ||d||_q)``. Its fixed point is the stationary point of the loss on the
    sphere. z may change its sign.

    Between 20% and 80% of the training, every `every` steps, active units with ``|z| < f mean |z|`` of their group
    are masked, ``f = 0.1 (1 + cos(pi t))``, and a share r of as many returns, those of the largest |dL/dz|. r follows
    the share s of masked units: ``0.9 s/target`` while ``s < target (1 - f/2)``, else ``1.1 s/target``. A masked unit
    multiplies by 0 and has no gradient or momentum, but its v stays, scaled like the others by (1 - rate) over their
    norm, so that it can come back: the paper's semi-pruning, made explicit.

    Masked units go with `compact`; the others keep their real-valued gate, which the export folds into weights.

    Deviations from the authors' code: it constrains the weights of each row, here the gates of each group; the training
    starts with all units active instead of 20% masked at random. The optimizer of the weights is free.

    Args:
        plastic: the handle of the model, at k = inf.
        steps: number of training steps, calls of `after_step`.
        target: share of all units to mask, in (0, 1].
        p: order of the norm, in [1.05, 2]: 1.4 to 1.3 for half of the weights, 1.2 to 1.07 for 90%; a number, or a dict
            from name pattern of groups to number, in which the first match counts.
        rate: eta, the step size, in (0, 1]; may be set between steps.
        momentum: of the gradient, in [0, 1].
        every: steps between changes of the topology.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.LpSphere(npn.attach(model, x), steps=1000, p=1.2)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> method.after_step()
        >>> round(float(method.evaluation_mask().norm(1.2)), 4), round(8 ** (1 / 1.2), 4)
        (5.6569, 5.6569)

    References:
        Li et al., "LpSS", arXiv:2103.16013, and the authors' code.
    """

    whole_units = True

    def __init__(
        self,
        plastic: Plasticity,
        *,
        steps: int,
        target: float = 0.5,
        p: float | Mapping[str, float] = 1.3,
        rate: float = 5e-3,
        momentum: float = 0.9,
        every: int = 40,
    ) -> None:
        super().__init__(plastic)
        self.steps = whole_number("steps", steps, 1, "training steps")
        self.every = whole_number("every", every, 1, "steps")
        self.target, self.rate = positive("target", target, below=1), positive("rate", rate, below=1)
        self.momentum = share("momentum", momentum)
        for value in p.values() if isinstance(p, Mapping) else [p]:
            check_p(value)
        self.done, self.returned, self.full = 0, RETURNED, len(plastic.gates)
        self._p = self._per_group(p, "p")
        sizes = [(group.size, self._p[group.name]) for group in self.groups]
        dual = [torch.full((size,), size ** (-1 / conjugate(at))) for size, at in sizes]
        radius = [torch.full((size,), size ** (1 / at)) for size, at in sizes]
        every_dual, zero = torch.cat(dual), torch.zeros(len(plastic.gates))
        self._leaf: Tensor | None = None
        self._begin(
            fixed={
                "dual": (every_dual, float(every_dual.mean())),
                "radius": (torch.cat(radius), 1.0),
                "momentum": (zero, 0.0),
                "active": (zero == 0, 1.0),
            }
        )

    def gates(self) -> Tensor:
        """z of every unit, masked or not, (units,)."""
        pieces = [
            self._at("radius", g) * functional.primal_of(self._at("dual", g), self._p[g.name]) for g in self.groups
        ]
        return torch.cat(pieces)

    def training_mask(self, batch: int | None = None) -> Tensor:
        """z of the active units, 0 for the others."""
        mask = self.evaluation_mask()
        if self._leaf is None or self._leaf.shape != mask.shape:
            self._leaf = mask.requires_grad_()  # gradients of several calls add up until `after_step`
        return self._leaf if batch is None else self._leaf.expand(batch, -1)

    @torch.no_grad()
    def evaluation_mask(self) -> Tensor:
        """z of the active units, 0 for the others."""
        return self.gates() * self._joined("active")

    def chosen(self) -> tuple[Tensor, Tensor]:
        """The active units; the score is |z|, and higher for active ones."""
        active = self._joined("active")
        return active, self.gates().abs() + active

    @torch.no_grad()
    def after_step(self) -> None:
        """Step on the sphere and, now and then, change which units are active."""
        gradient = None if self._leaf is None else self._leaf.grad
        self._leaf = None
        self.done += 1
        if gradient is not None:
            average_([gradient])
            pieces = self._pieces(gradient)
            for group, piece in zip(self.groups, pieces, strict=True):
                self._step(group, piece)
            t = self.done / self.steps
            if self.done % self.every == 0 and FIRST <= t < LAST:
                self._change(pieces, functional.cosine_share(DROP, t))
        super().after_step()

    def sparsity(self) -> float:
        """Share of masked and removed units among all that there were."""
        self.full = max(self.full, len(self.plastic.gates))
        return 1 - int(self._joined("active").sum()) / self.full

    def hoyer(self) -> float:
        """Hoyer's sparsity of the gates, mean over groups of two units and more, weighted by size."""
        found = [(functional.hoyer(z), len(z)) for z in self._pieces(self.gates()) if len(z) > 1]
        return float(sum(h * n for h, n in found)) / sum(n for _, n in found)

    def state_dict(self) -> dict[str, Any]:
        """Dual vectors, momenta, active units, and the steps done."""
        return super().state_dict() | {"done": self.done, "returned": self.returned, "full": self.full}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` saved."""
        super().load_state_dict(state)
        self.done, self.returned, self.full = int(state["done"]), float(state["returned"]), int(state["full"])

    def _at(self, name: str, group: UnitGroup) -> Tensor:
        return self._tensors[name][group.name]

    def _step(self, group: UnitGroup, gradient: Tensor) -> None:
        """Step on the sphere of one group."""
        dual, radius, velocity, active = (self._at(name, group) for name in ("dual", "radius", "momentum", "active"))
        p = self._p[group.name]
        norm = torch.linalg.vector_norm(dual, conjugate(p))  # 1, unless a resize has changed the units
        radius.mul_(norm ** (1 / (p - 1)))
        gradient = gradient * active
        velocity.mul_(self.momentum).add_(gradient).mul_(active)
        direction = gradient + self.momentum * velocity
        dual.copy_(functional.dual_step(dual / norm, direction, self.rate, p))

    def _change(self, gradients: list[Tensor], share_dropped: float) -> None:
        """Mask the smallest active units of each group, and let some return."""
        for group, gradient in zip(self.groups, gradients, strict=True):
            active, velocity = self._at("active", group), self._at("momentum", group)
            size = (
                self._at("radius", group) * functional.primal_of(self._at("dual", group), self._p[group.name])
            ).abs()
            mean = (size * active).sum() / active.sum()
            dropped = active & (size < share_dropped * mean)
            active &= ~dropped
            number = min(int(int(dropped.sum()) * self.returned), int((~active).sum()))
            promise = torch.where(active, -torch.inf, gradient.abs())
            active[promise.argsort(descending=True, stable=True)[:number]] = True
            velocity.mul_(active)
        zeros = self.sparsity()
        below = zeros < self.target * (1 - share_dropped / 2)
        self.returned = min(1.0, (1 - ADAPT if below else 1 + ADAPT) * zeros / self.target)
