"""Beta-Bernoulli dropout: keep probabilities with a sparse beta prior and a Kumaraswamy posterior."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from npn import functional
from npn._utils.validation import finite, positive, share, whole_number
from npn.methods.method import Method
from npn.plasticity import Plasticity

START_B = 0.5413248546129181  # softplus of it is 1


@final
class BetaBernoulli(Method):
    """Beta-Bernoulli dropout: each keep probability has a posterior, whose divergence from a sparse prior is paid.

    Prior ``pi_j ~ Beta(alpha, 1)``, posterior ``q(pi_j) = Kumaraswamy(a_j, b_j)``. A step draws one pi per unit and
    ``z = sigmoid((logit(pi) + logit(u)) / temperature)``, with one u per step, or per example with
    ``masks="example"`` as in the paper. The price is ``kl_scale / examples  sum_j KL(q(pi_j) || Beta(alpha, 1))``,
    exact.

    In evaluation the gate is ``E[pi_j]``, or 0 below `threshold`: such units go, the others keep their real-valued
    gate, which the export folds into weights.

    Deviations from the authors' code: a gate multiplies the weights that read the unit, so it acts after BatchNorm and
    nonlinearity; pi is drawn as ``expm1`` of a logarithm, which keeps small values exact. Pre-train the model first.

    Args:
        plastic: the handle of the model, at k = inf.
        examples: N, number of training examples, so that loss and divergence are both per example.
        alpha: of the prior.
        a: initial value of a before the softplus: -1 for a network like LeNet, 2 for one like VGG.
        temperature: of the relaxed gates.
        kl_scale: factor on the divergence; a number, or a dict from name pattern of groups to number, in which the
            first match counts.
        threshold: of E[pi].

    Raises:
        ConfigurationError: an argument is outside its range.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.BetaBernoulli(npn.attach(model, x), examples=16)
        >>> method.evaluation_mask()[:2]
        tensor([0.2385, 0.2385])
        >>> loss = method.backward(lambda: model(x).square().mean())

    References:
        Lee et al., "Adaptive Network Sparsification with Dependent Variational Beta-Bernoulli Dropout",
        arXiv:1805.10896, Eq. 7 to 11.
    """

    def __init__(
        self,
        plastic: Plasticity,
        *,
        examples: int,
        alpha: float = 1e-4,
        a: float = -1.0,
        temperature: float = 0.1,
        kl_scale: float | Mapping[str, float] = 1.0,
        threshold: float = 1e-3,
    ) -> None:
        super().__init__(plastic)
        self.examples = whole_number("examples", examples, 1, "training examples")
        self.alpha, self.temperature = positive("alpha", alpha), positive("temperature", temperature)
        self.threshold = share("threshold", threshold)
        scales, raw = self._per_group(kl_scale, "kl_scale", positive), self._units(finite("a", a))
        one = torch.full_like(raw, START_B)
        self._begin({"a": (raw, float(a)), "b": (one, START_B)}, fixed={"kl_scale": (self._units(scales), scales)})

    def posterior(self) -> tuple[Tensor, Tensor]:
        """a and b of each unit's Kumaraswamy distribution, (units,), > 0."""
        raw_a, raw_b = self._joined("a").clamp(min=-10), self._joined("b").clamp(-10, 50)
        return softplus(raw_a), softplus(raw_b)

    def training_mask(self, batch: int | None = None) -> Tensor:
        """One keep probability per unit, and one relaxed gate per unit and step or example."""
        gates = self.plastic.gates
        probability = functional.kumaraswamy_sample(*self.posterior(), gates.draw())
        uniform = gates.draw(batch)
        return functional.relaxed_bernoulli(probability, uniform, self.temperature)

    @torch.no_grad()
    def evaluation_mask(self) -> Tensor:
        """E[pi], or 0 below the threshold."""
        mean = functional.kumaraswamy_mean(*self.posterior())
        return torch.where(mean >= self.threshold, mean, torch.zeros_like(mean))

    @torch.no_grad()
    def chosen(self) -> tuple[Tensor, Tensor]:
        """Units with E[pi] at the threshold or above; the score is E[pi]."""
        mean = functional.kumaraswamy_mean(*self.posterior())
        return mean >= self.threshold, mean

    def penalty(self) -> Tensor:
        """``sum_j kl_scale_j KL_j / examples``."""
        divergence = functional.kumaraswamy_kl(*self.posterior(), self.alpha)
        return (self._joined("kl_scale") * divergence).sum() / self.examples
