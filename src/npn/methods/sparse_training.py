"""Sparse from the start, with a topology that changes: RigL grows by gradient, SET at random."""

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor

from npn import functional
from npn._utils.collectives import average_
from npn._utils.validation import positive, share, whole_number
from npn.errors import ConfigurationError
from npn.functional.topology import rounded_down
from npn.methods.method import Method
from npn.plasticity import Plasticity
from npn.surgery import forget_momentum


class _SparseTraining(Method):
    """Train a fixed number of weights per layer; now and then drop the smallest and grow as many others."""

    saved = ("done",)

    def __init__(
        self,
        plastic: Plasticity,
        *,
        density: float = 0.1,
        until: int,
        every: int = 100,
        drop: float = 0.3,
        distribution: str = "erk",
    ) -> None:
        super().__init__(plastic)
        name = type(self).__name__
        if not plastic.gates.weights:
            raise ConfigurationError(
                f'{name} decides about single weights, but none has a gate; attach with unstructured=, such as "*"'
            )
        self.density = positive("density", density, below=1)
        self.every, self.until = whole_number("every", every, 1, "steps"), whole_number("until", until, 1, "steps")
        self.drop, self.done = share("drop", drop), 0
        weights = self.single_weights()
        self.densities = functional.layer_densities({n: w.shape for n, w in weights.items()}, density, distribution)
        active = torch.ones(len(plastic.gates), dtype=torch.bool, device=plastic.gates.device)
        pieces = plastic.gates.pieces(active)[-len(weights) :]
        for (each, weight), piece in zip(weights.items(), pieces, strict=True):
            number = max(1, rounded_down(self.densities[each] * weight.numel()))
            piece.zero_()[self._random(weight.numel()).argsort()[:number]] = True
        self._begin(fixed={"active": (active, 1.0)})
        self._close()

    def training_mask(self, batch: int | None = None) -> Tensor:
        """1 for units and active weights; the others are zero anyway, and get no gradient."""
        return self._joined("active").float()

    def chosen(self) -> tuple[Tensor, Tensor]:
        """Units and active weights."""
        active = self._joined("active")
        return active, active.float()

    @torch.no_grad()
    def after_step(self) -> None:
        """Set inactive weights and their momentum to zero; change the topology if it is time."""
        self.done += 1
        if self.done % self.every == 0 and self.done < self.until:
            part = functional.cosine_share(self.drop, self.done / self.until)
            for name, weight in self.single_weights().items():
                active, promise = self._tensors["active"][name], self._promise(name, weight)
                if not bool(promise.isfinite().all()):
                    continue  # a GradScaler's factor has overflowed, and its optimizer has skipped the step as well
                new, grown = functional.replaced(active, weight.abs(), promise, part)
                active.copy_(new)
                weight.masked_fill_(grown, 0)
                forget_momentum(self.plastic.optimizers, weight, grown)
        self._close()
        super().after_step()

    @abstractmethod
    def _promise(self, name: str, weight: Tensor) -> Tensor:
        """How much each weight promises, in the shape of the weight."""

    def _random(self, *shape: int) -> Tensor:
        """U(0, 1) from the gates' generator, the same on every process."""
        gates = self.plastic.gates
        return torch.rand(*shape, generator=gates.generator, dtype=torch.float32, device=gates.device)

    @torch.no_grad()
    def _close(self) -> None:
        """Set inactive weights and their momentum to zero."""
        for name, weight in self.single_weights().items():
            inactive = ~self._tensors["active"][name]
            weight.masked_fill_(inactive, 0)
            forget_momentum(self.plastic.optimizers, weight, inactive)


@final
class RigL(_SparseTraining):
    """Train a sparse network whose weights move to where the gradient is large; the number of each layer stays.

    Every `every` steps, until `until`, each layer drops ``floor(f n)`` of its n active weights, those of least |w|,
    and grows as many inactive ones, those of the largest |dL/dw| in the dense gradient of the last `backward`; ``f =
    drop/2 (1 + cos(pi t/until))``. Grown weights start at zero, without momentum. A weight just dropped grows again
    only if its gradient ranks.

    Inactive weights are exactly zero from the start, whatever the optimizer; `compact` removes the units that nothing
    reads any more; the export has zeros.

    Deviations from the authors' code: the topology changes after an optimizer step instead of in place of it; the
    optimizer's second moments of grown weights stay as they are.

    Args:
        plastic: the handle of the model, attached with ``unstructured=``, at k = inf. Its named weights are made
            sparse.
        density: active share of all these weights, in (0, 1].
        until: steps, calls of `after_step`, after which the topology stays; three quarters of the training in the
            paper.
        every: steps between changes.
        drop: share of the active weights that is replaced at first, in [0, 1].
        distribution: "erk" or "uniform", see `npn.functional.layer_densities`.

    Raises:
        ConfigurationError: no single weight has a gate, or an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.RigL(npn.attach(model, x, unstructured="*"), density=0.25, until=750, every=1)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> method.after_step()
        >>> {name: int(kept.sum()) for name, kept in method.kept().items()}
        {'0': 8, '0.weight': 6, '2.weight': 5}

    References:
        Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, Algorithm 1.
    """

    def _promise(self, name: str, weight: Tensor) -> Tensor:
        gradient = self.plastic.masked_weights.dense_gradients().get(name)
        if gradient is None:
            return torch.zeros_like(weight)
        average_([gradient := gradient.detach().clone()])
        return gradient.abs()


@final
class SET(_SparseTraining):
    """Train a sparse network whose smallest weights move to random places; for all else see `RigL`.

    Deviations from the paper: the share that is replaced falls along a cosine, as in RigL (`drop` at first); the
    weights dropped are those of least magnitude, instead of the least positive and the least negative ones.

    Args:
        plastic, density, until, every, drop, distribution: see `RigL`.

    Raises:
        ConfigurationError: no single weight has a gate, or an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> method = npn.methods.SET(npn.attach(model, torch.zeros(1, 4), unstructured="0"), density=0.5, until=750)
        >>> int(model[0].weight.count_nonzero())
        16

    References:
        Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by
        Network Science", Nature Communications 2018.
    """

    def _promise(self, name: str, weight: Tensor) -> Tensor:
        return self._random(*weight.shape)
