"""Targeted dropout of whole units: those of least weight are dropped at random while the others learn to do without."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from npn._utils.layout import along
from npn._utils.models import model_tensors
from npn._utils.validation import flag, share, whole_number
from npn.entries import UnitEntries, producing
from npn.errors import ConfigurationError
from npn.functional.topology import rounded_down, smallest
from npn.methods.method import Method
from npn.plasticity import Plasticity


@final
class TargetedDropout(Method):
    """Drop the units and weights of least magnitude at random in training, and all of them in evaluation.

    Candidates are the ``floor(gamma n)`` units of a group with the least norm ``||w_o||_2`` of the weights that
    produce them; and, of parameters whose single weights have gates (``attach(..., unstructured=)``), the
    ``floor(gamma n)`` weights of least ``|w|`` among the n that produce each unit. A step drops each candidate with
    probability alpha, without rescaling; what is dropped keeps its value and gets no gradient. Evaluation, `compact`
    and `export` drop every candidate.

    With ``ramp``, alpha rises linearly from 0 over that many steps, gamma from 0 to 0.95 of its value over the first
    half and to the full value over the second half. Weights that `compact` has removed stay candidates.

    Deviations from the authors' code: a dropped unit is dropped as a whole, as in the paper's Eq. 1, where the code
    draws for each weight inside a targeted unit (``paper_code=True`` does so); ties at the threshold do not survive;
    the unit of largest norm always stays; a unit's norm counts all layers that produce it. Biases and the units of the
    network's output are never targeted; the weights of its last layer are if ``unstructured=`` names them, which the
    paper leaves alone: give them ``{"fc3.weight": 0, "*": 0.5}`` for that.

    Args:
        plastic: the handle of the model, at k = inf.
        targeted: gamma, in [0, 1]; a number, or a dict from name pattern of groups and of parameters with single-weight
            gates to number, in which the first match counts: ``{"fc*.weight": 0.9, "*": 0}`` targets weights only.
        rate: alpha, the probability with which a candidate is dropped, in [0, 1].
        ramp: calls of `after_step` until gamma and alpha reach their values; None for no ramp.
        paper_code: in training drop each weight that produces a candidate unit with probability alpha, in place of the
            unit, as the authors' code does; all these weights need gates of their own.

    Raises:
        ConfigurationError: an argument is outside its range, no weight produces the units of a group, or `paper_code`
            is given and a weight that produces units has no gate of its own.

    Example:
        >>> import npn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(16, 4)
        >>> method = npn.methods.TargetedDropout(npn.attach(model, x), targeted=0.75, rate=0.5)
        >>> loss = method.backward(lambda: model(x).square().mean())
        >>> method.after_step()
        >>> method.export()
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )

    References:
        Gomez et al., "Learning Sparse Networks Using Targeted Dropout", arXiv:1905.13678, Section 4 (Eq. 1, 2) and
        "ramping targeted dropout".
    """

    saved = ("steps", "sizes")

    def __init__(
        self,
        plastic: Plasticity,
        *,
        targeted: float | Mapping[str, float] = 0.5,
        rate: float = 0.5,
        ramp: int | None = None,
        paper_code: bool = False,
    ) -> None:
        super().__init__(plastic)
        self._shares = self._per_group(targeted, "targeted", share)
        self.rate = share("rate", rate)
        self.ramp = None if ramp is None else whole_number("ramp", ramp, 1, "steps (or None)")
        self.paper_code, self.steps = flag("paper_code", paper_code), 0
        self._entries = self._find_entries()
        produced = zip(self.groups, self._entries.counts.split([group.size for group in self.groups]), strict=True)
        without = [repr(group.name) for group, counts in produced if not bool(counts.all())]
        if without:
            raise ConfigurationError(
                f"no weight produces the units of {', '.join(without)}, so they have no norm; leave them out with "
                "skip= when attaching"
            )
        own = {id(weight) for weight in self.single_weights().values()}
        if paper_code and not all(id(tensor) in own for tensor, *_ in self._entries.terms):
            raise ConfigurationError(
                "paper_code=True draws for each weight that produces a unit, but not all of these have gates of their "
                'own; attach with unstructured="*"'
            )
        self.sizes = {name: values.shape[-1] for name, values in self.magnitudes().items()}
        self._begin()

    @torch.no_grad()
    def candidates(self) -> Tensor:
        """What is dropped at random now, bool (gates,)."""
        at, found, single = self._ramped()[0], [], self.plastic.unstructured
        for name, values in self.magnitudes().items():
            size = values.shape[-1]
            full = self.sizes[name] = max(self.sizes[name], size)  # the share counts what has gone already
            stay = max(1 if values.dim() == 1 else 0, full - rounded_down(at * self._shares[name] * full))
            chosen = self._from_rows(name, smallest(values, max(0, size - stay)))
            found.append(chosen | single[name].removed if name in single else chosen)
        return torch.cat([each.reshape(-1) for each in found])

    @torch.no_grad()
    def magnitudes(self) -> dict[str, Tensor]:
        """Norm of the weights that produce each unit, (size,); |w| of single weights, (outputs, weights of each)."""
        if not self._entries.belong_to(self.plastic.structure, self.plastic.gates.device):
            self._entries = self._find_entries()
        norms = self._entries.sums(lambda w: w.detach().abs().square()).sqrt()
        pieces = norms.split([group.size for group in self.groups])
        found = {group.name: piece for group, piece in zip(self.groups, pieces, strict=True)}
        for name, weight in self.single_weights().items():
            found[name] = self._rows(name, weight.detach().abs())
        return found

    @torch.no_grad()
    def training_mask(self, batch: int | None = None) -> Tensor:
        """0 for candidates with probability alpha, else 1."""
        uniform = self.plastic.gates.draw(batch)
        candidates = self._weights_of(self.candidates()) if self.paper_code else self.candidates()
        return (~(candidates & (uniform < self._ramped()[1]))).float()

    def chosen(self) -> tuple[Tensor, Tensor]:
        """What is no candidate; the score is the magnitude."""
        scores = [self._from_rows(name, values).reshape(-1) for name, values in self.magnitudes().items()]
        return ~self.candidates(), torch.cat(scores)

    def after_step(self) -> None:
        """Count a step of the ramp."""
        self.steps += 1
        super().after_step()

    def _weights_of(self, candidates: Tensor) -> Tensor:
        """The candidates, bool (gates,), with the weights that produce candidate units in place of these units."""
        units, single = candidates.tensor_split([len(self._entries.counts)])
        weights = self.single_weights().values()
        pieces = zip(weights, single.split([weight.numel() for weight in weights]), strict=True)
        found = {id(weight): piece.view_as(weight).clone() for weight, piece in pieces}
        for tensor, axis, positions, of in self._entries.terms:
            assert axis is not None
            here = units.new_zeros(tensor.shape[axis]).index_copy(0, positions, units[of])
            found[id(tensor)] |= along(here, axis, tensor.dim())
        return torch.cat([torch.zeros_like(units), *(each.reshape(-1) for each in found.values())])

    def _ramped(self) -> tuple[float, float]:
        """The present share of gamma, and the present alpha."""
        if self.ramp is None or self.steps >= self.ramp:
            return 1.0, self.rate
        t = self.steps / self.ramp
        return (1.9 * t if t < 0.5 else 0.95 + 0.1 * (t - 0.5)), self.rate * t

    def _find_entries(self) -> UnitEntries:
        plastic, tensors = self.plastic, model_tensors(self.plastic.model)
        places = (p for p in producing(plastic.structure) if p.gated or tensors[p.tensor].dim() > 1)
        return UnitEntries(plastic.model, plastic.structure, places, plastic.gates.device)
