"""LpSS: gates or weights on an Lp sphere, moved in its dual space; small ones are masked and may come back."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from npn import functional
from npn._utils import cpu
from npn._utils.collectives import average_
from npn._utils.validation import positive, share, whole_number
from npn.functional.lp_sphere import check_p, conjugate
from npn.functional.topology import rounded_down
from npn.methods.method import Method
from npn.plasticity import Plasticity

DROP, ADAPT, RETURNED = 0.2, 0.1, 0.95  # threshold at the start, adaptation of the share that returns, its start
FIRST, LAST = 0.2, 0.8  # of the training, between which the topology changes


@final
class LpSphere(Method):
    """Gates or weights on an Lp sphere: near p = 1 its geometry makes most of them small, and small ones are masked.

    Without single-weight gates, the gates z of a group have ``||z||_p = n^(1/p)`` and start at 1. A resize keeps the
    gates of the units that stay, whose norm it is from then on; new units start at 1. With ``attach(...,
    unstructured=)``, as in the paper, the weights w that produce each unit keep the norm ``||w||_p`` they have at the
    start, and units go when nothing reads them.

    Each `after_step` takes a step in the dual space, on ``v = sign(z) |z|^(p-1)`` scaled to ``||v||_q = 1``, with the
    Nesterov momentum d of the gradient: ``v <- normalised_q((1 - rate) v - rate d / ||d||_q)``. Its fixed point is the
    stationary point of the loss on the sphere. z may change its sign.

    Between 20% and 80% of the training, every `every` steps, active entries with ``|z| < f mean |z|`` of their sphere
    are masked, ``f = 0.1 (1 + cos(pi t))``, and a share r of as many returns, those of the largest gradient in their
    group or layer, over the norm of their sphere's, in the last `backward`; t is the part of the steps that is done. r
    follows the share s of masked entries: ``0.9 s/target`` while ``s < target (1 - f/2)``, else
    ``1.1 s/target``. A masked entry multiplies by 0 and has no gradient or momentum, but its v stays, scaled like the
    others by (1 - rate) over their norm, so that it can come back: the paper's semi-pruning, made explicit.

    Masked units go with `compact`; the others keep their real-valued gate, which the export folds into weights.

    Deviations from the authors' code: spheres of gates, for whole units; weights keep the norm of their initial values
    instead of 1, so that no BatchNorm is needed, and a layer that starts at zero does not move; every named layer is on
    spheres, the last one as well. What the optimizer does to weights on spheres is replaced by the step here; layers
    with one weight per unit are free.

    Args:
        plastic: the handle of the model, at k = inf.
        steps: number of training steps, calls of `after_step`.
        target: share of units (or of the named weights) to mask, in (0, 1].
        p: order of the norm, in [1.05, 2]: 1.4 to 1.3 for half of the weights, 1.2 to 1.07 for 90%; a number, or a dict
            from name pattern of groups and parameters to number, in which the first match counts.
        rate: eta, the step size, in (0, 1]; may be set between steps. Steps have a length of their own, whatever the
            gradient's: rate times steps should be 10 or more for entries to become small.
        momentum: of the gradient, in [0, 1].
        every: steps between changes of the topology.
        start: share that is masked at random at the start, in [0, 1]; 0.2 in the authors' code.

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

    saved = ("done", "returned", "full")

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
        start: float = 0.0,
    ) -> None:
        super().__init__(plastic)
        self.steps = whole_number("steps", steps, 1, "training steps")
        self.every = whole_number("every", every, 1, "steps")
        self.target, self.rate = positive("target", target, below=1), positive("rate", rate, below=1)
        self.momentum = share("momentum", momentum)
        self._p = self._per_group(p, "p", lambda _, value: check_p(value))
        self.done, self.returned = 0, RETURNED
        self._leaf: Tensor | None = None
        self._seen: dict[str, Tensor] = {}  # gradients, which `zero_grad` may take from the weights before `after_step`
        gates, values = plastic.gates, self.single_weights()
        drawn = torch.rand(len(gates), generator=gates.generator, dtype=torch.float32, device=gates.device)
        active = drawn >= share("start", start)
        dual, radius = list[Tensor](), list[Tensor]()
        for name, mask, gate in zip(self.names, gates.pieces(active), gates.each, strict=True):
            rows = self._rows(name, values[name].detach() if name in values else torch.ones_like(gate.logits))
            if not self._moves(name, rows):
                mask.fill_(True)
            norm = torch.linalg.vector_norm(rows, self._p[name], dim=-1, keepdim=True).clamp(min=1e-12)
            dual.append(self._from_rows(name, functional.dual_of(rows / norm, self._p[name])).reshape(-1))
            radius.append(self._from_rows(name, norm.expand_as(rows)).reshape(-1))
        self.full = self._count()
        zero = cpu.zeros(len(plastic.gates), dtype=torch.float32)
        self._begin(
            fixed={
                "dual": (torch.cat(dual).detach(), 0.0),
                "radius": (torch.cat(radius).detach(), 0.0),  # which `restructured` replaces
                "momentum": (zero, 0.0),
                "active": (active, 1.0),
            }
        )

    def values(self, name: str) -> Tensor:
        """z of every unit of a group, or w of every weight of a parameter, masked or not, in its shape."""
        return self._at("radius", name) * functional.primal_of(self._at("dual", name), self._p[name])

    def backward(self, closure: Callable[[], Tensor], *, scale: float | Any = 1.0) -> Tensor:
        """See `Method.backward`."""
        loss = super().backward(closure, scale=scale)
        self._seen = {name: w.grad for name, w in self.single_weights().items() if w.grad is not None}
        return loss

    def restructured(self) -> None:
        """Put new entries on the sphere of the others: units with z = 1, weights where growth has put them, at 0."""
        self._leaf, self._seen = None, {}
        for name in self.names:
            radius, dual = (self._rows(name, self._at(tensor, name)) for tensor in ("radius", "dual"))
            new = radius == 0
            radius = torch.where(new, radius.amax(-1, keepdim=True), radius)
            if name not in self.plastic.unstructured:
                dual = torch.where(new, functional.dual_of(1 / radius, self._p[name]), dual)
            self._at("radius", name).data.copy_(self._from_rows(name, radius))
            self._at("dual", name).data.copy_(self._from_rows(name, dual))

    def training_mask(self, batch: int | None = None) -> Tensor:
        """z of the active units, 0 for the others; 1 for active weights."""
        mask = self.evaluation_mask()
        if self._leaf is None or self._leaf.shape != mask.shape:
            self._leaf = mask.requires_grad_(not self.plastic.gates.weights)  # its gradients add up until `after_step`
        return self._leaf if batch is None else self._leaf.expand(batch, -1)

    @torch.no_grad()
    def evaluation_mask(self) -> Tensor:
        """z of the active units, 0 for the others; 1 for active weights."""
        active = self._joined("active").float()
        if self.plastic.gates.weights:
            return active
        return active * torch.cat([self.values(name) for name in self.names])

    @torch.no_grad()
    def chosen(self) -> tuple[Tensor, Tensor]:
        """What is active; the score is |z|, and higher for what is active."""
        active = self._joined("active")
        return active, torch.cat([self.values(name).abs().reshape(-1) for name in self.names]) + 1e3 * active

    @torch.no_grad()
    def after_step(self) -> None:
        """Step on the sphere and, now and then, change what is active."""
        gradients, promises = self._gradients()
        self._leaf, self._seen = None, {}
        self.done += 1
        for name, gradient in gradients.items():
            self._step(name, gradient)
        t = self.done / self.steps
        if self.done % self.every == 0 and FIRST <= t < LAST and promises:
            self._change(promises, functional.cosine_share(DROP, t))
        super().after_step()

    def sparsity(self) -> float:
        """Share of masked and removed entries among all that there were."""
        self.full = max(self.full, self._count())
        active = sum(int(self._at("active", name).sum()) for name in self.names if self._moves(name))
        return 1 - active / self.full

    def hoyer(self) -> float:
        """Hoyer's sparsity, mean over spheres of two entries and more, weighted by size."""
        rows = [self._rows(name, self.values(name)) for name in self.names if self._moves(name)]
        found = [(float(functional.hoyer(each).mean()), each.numel()) for each in rows if each.shape[-1] > 1]
        return sum(h * n for h, n in found) / sum(n for _, n in found)

    def _at(self, tensor: str, name: str) -> Tensor:
        return self._tensors[tensor][name]

    def _moves(self, name: str, rows: Tensor | None = None) -> bool:
        """Whether the entries of a group or parameter lie on spheres."""
        weights = self.single_weights()
        if not weights:
            return True
        return name in weights and (self._rows(name, weights[name]) if rows is None else rows).shape[-1] > 1

    def _count(self) -> int:
        """Number of entries on spheres."""
        gates = zip(self.names, self.plastic.gates.each, strict=True)
        return sum(gate.logits.numel() for name, gate in gates if self._moves(name))

    def _gradients(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Name -> gradient, and name -> |gradient| that counts masked entries too; the same on every process."""
        if self.plastic.gates.weights:
            gradients = {name: gradient for name, gradient in self._seen.items() if self._moves(name)}
            dense = self.plastic.masked_weights.dense_gradients()
            promises = {name: dense[name].detach().clone() for name in gradients if name in dense}
            average_(promises.values())
            return gradients, {name: self._by_sphere(name, gradient.abs()) for name, gradient in promises.items()}
        if self._leaf is None or self._leaf.grad is None:
            return {}, {}
        average_([self._leaf.grad])
        found = dict(zip(self.names, self.plastic.gates.pieces(self._leaf.grad), strict=True))
        return found, {name: gradient.abs() for name, gradient in found.items()}

    def _by_sphere(self, name: str, sizes: Tensor) -> Tensor:
        """Sizes of gradients over the norm of those of the same sphere."""
        return self._from_rows(name, F.normalize(self._rows(name, sizes), dim=-1))

    def _step(self, name: str, gradient: Tensor) -> None:
        """Step on the spheres of one group or parameter."""
        p, q, active, velocity = (
            self._p[name],
            conjugate(self._p[name]),
            self._at("active", name),
            self._at("momentum", name),
        )
        weight = self.single_weights().get(name)
        dual, radius = self._rows(name, self._at("dual", name)), self._rows(name, self._at("radius", name))
        norm = torch.linalg.vector_norm(dual, q, dim=-1, keepdim=True)  # 1, unless a resize has changed the entries
        if weight is not None:  # weights that growth has added start where it has put them
            rows = self._rows(name, weight.detach())
            length = torch.linalg.vector_norm(rows, p, dim=-1, keepdim=True).clamp(min=1e-12)
            fresh = norm == 0
            dual = torch.where(fresh, functional.dual_of(rows / length, p), dual)
            radius, norm = torch.where(fresh, length, radius), torch.where(fresh, torch.ones_like(norm), norm)
        gradient = torch.where(gradient.isfinite().all(), gradient * active, 0.0)  # a GradScaler's factor may overflow
        velocity.mul_(self.momentum).add_(gradient).mul_(active)
        direction = self._rows(name, gradient + self.momentum * velocity)
        self._at("radius", name).copy_(self._from_rows(name, radius * norm ** (1 / (p - 1))))
        self._at("dual", name).copy_(self._from_rows(name, functional.dual_step(dual / norm, direction, self.rate, p)))
        if weight is not None:
            weight.copy_(self.values(name))

    def _change(self, promises: Mapping[str, Tensor], share_dropped: float) -> None:
        """Mask the smallest active entries of each sphere, and let some return."""
        for name, promise in promises.items():
            active = self._at("active", name)
            size, there = self._rows(name, self.values(name).abs()), self._rows(name, active)
            mean = (size * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
            dropped = self._from_rows(name, there & (size < share_dropped * mean))
            active &= ~dropped
            number = min(rounded_down(int(dropped.sum()) * self.returned), int((~active).sum()))
            high = torch.where(active, -torch.inf, promise).reshape(-1)
            active.view(-1)[high.argsort(descending=True, stable=True)[:number]] = True
            self._at("momentum", name).mul_(active)
        zeros = self.sparsity()
        below = zeros < self.target * (1 - share_dropped / 2)
        self.returned = min(1.0, (1 - ADAPT if below else 1 + ADAPT) * zeros / self.target)
