"""The variational information bottleneck: Gaussian gates, and units with more noise than signal go."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from npn import functional
from npn._utils.validation import positive
from npn.methods.method import Method
from npn.plasticity import Plasticity

LOG_VARIANCE = -9.0


@final
class InformationBottleneck(Method):
    """Gaussian gates whose information about their unit is paid; units with more noise than signal go.

    ``z_j ~ N(mu_j, sigma_j^2)``, one draw per step, or per example with ``masks="example"`` as in the paper; the
    price is ``weight sum_j 1/2 log(1 + mu_j^2 / sigma_j^2)``. In evaluation the gate is ``mu_j``, or 0 where ``log
    sigma_j^2 - log mu_j^2 >= 0``: such units go, the others keep their real-valued gate, which the export folds into
    weights.

    Deviations from the authors' code: a gate multiplies the weights that read the unit, so it acts after BatchNorm and
    nonlinearity; the price is not divided by the number of examples, since `weight` does that.

    Args:
        plastic: the handle of the model, at k = inf.
        weight: gamma, price in loss units per nat: 1e-4 for a network like LeNet, 1e-6 for one like VGG; a number, or a
            dict from name pattern of groups to number, in which the first match counts.

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.InformationBottleneck(npn.attach(model, x), weight=1e-3)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> [tuple(p.shape) for p in method.parameters()]
        [(8,), (8,)]

    References:
        Dai, Zhu, Guo and Wipf, "Compressing Neural Networks using the Variational Information Bottleneck", ICML 2018.
    """

    def __init__(self, plastic: Plasticity, *, weight: float | Mapping[str, float] = 1e-4) -> None:
        super().__init__(plastic)
        by_group = self._per_group(weight, "weight", positive)
        prices = self._units(by_group)
        noise = torch.randn(len(prices), generator=plastic.gates.generator, dtype=torch.float32, device=prices.device)
        start = {"mean": (1 + 0.01 * noise, 1.0), "log_variance": (torch.full_like(prices, LOG_VARIANCE), LOG_VARIANCE)}
        self._begin(start, fixed={"weight": (prices, by_group)})

    def training_mask(self, batch: int | None = None) -> Tensor:
        """See `npn.functional.bottleneck_sample`."""
        normal = self._normal(batch)
        return functional.bottleneck_sample(*self._gates(), normal)

    @torch.no_grad()
    def evaluation_mask(self) -> Tensor:
        """mu, or 0 where noise outweighs signal."""
        mean, log_variance = self._gates()
        return torch.where(functional.bottleneck_noise(mean, log_variance) < 0, mean, torch.zeros_like(mean))

    @torch.no_grad()
    def chosen(self) -> tuple[Tensor, Tensor]:
        """Units with more signal than noise; the score is the log of their ratio."""
        noise = functional.bottleneck_noise(*self._gates())
        return noise < 0, -noise

    def penalty(self) -> Tensor:
        """``sum_j weight_j 1/2 log(1 + mu_j^2 / sigma_j^2)``."""
        return (self._joined("weight") * functional.bottleneck_penalty(*self._gates())).sum()

    def _gates(self) -> tuple[Tensor, Tensor]:
        return self._joined("mean"), self._joined("log_variance")
