"""The record of all labels of a trace: which of them are one unit, which are frozen, and what reads and makes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from npn._utils import cpu
from npn.structure import Key
from npn.tracing.capture.norm_calls import NormCall
from npn.tracing.labels.joining import Served, decide, distinct, edge
from npn.tracing.labels.parts import squeeze_constant, varying

KERNEL = "the window of a kernel"  # reason of dimensions that are frozen but not listed


@dataclass(frozen=True, eq=False)
class Normed:
    """Units over which a norm, or another reduction, computes its statistics.

    Attributes:
        labels: of what is reduced, in canonical form.
        axes: that are reduced.
        call: where.
        reason: of units that are frozen because the norm cannot be followed.
    """

    labels: Tensor
    axes: tuple[int, ...]
    call: NormCall
    reason: str

    @property
    def axis(self) -> int:
        """The first reduced axis along which the units vary."""
        return min(varying(self.labels) & set(self.axes))


@dataclass
class Ledger:
    """Record of all labels of a trace: their owners, the labels that are one unit, and the frozen labels with reasons.

    The methods only record edges; `resolve` joins them in one connected-components pass.

    Attributes:
        slots: (tensor name, axis) of each owner, in the order of their labels.
        starts: first label of each owner, followed by the number of labels so far plus 1.
        reads: slots of weights that read units.
        produces: slots of weights that produce units.
        nonlinear: slots of weights of which a function is taken that is not linear, or that are data, too.
        normed: units over which norms compute their statistics, to be followed.
        layers: names of the weights of linear layers and convolutions.
    """

    slots: list[Key] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [1])
    reads: set[Key] = field(default_factory=set)
    produces: set[Key] = field(default_factory=set)
    nonlinear: set[Key] = field(default_factory=set)
    normed: list[Normed] = field(default_factory=list)
    layers: frozenset[str] = frozenset()
    _edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _causes: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    _frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    _mixed: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _touched: list[Tensor] = field(default_factory=list)
    _shared: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _divisors: list[tuple[Tensor, str]] = field(default_factory=list)
    _aligned: list[tuple[Tensor, int]] = field(default_factory=list)
    _served: list[Served] = field(default_factory=list)
    _known: dict[Key, Tensor] = field(default_factory=dict)

    def fresh(self, name: str, axis: int, size: int) -> Tensor:
        """Labels of one axis of a parameter or buffer; the same ones at every call.

        Args:
            name: name of the tensor.
            axis: the axis.
            size: its length.

        Returns:
            int64 (size,).
        """
        key = (name, axis)
        if key not in self._known:
            start = self.starts[-1]
            self._known[key] = cpu.arange(start, start + size)
            self.slots.append(key)
            self.starts.append(start + size)
        return self._known[key]

    def unite(self, a: Tensor, b: Tensor, cause: str = "") -> None:
        """Record that two label tensors describe the same units, element by element; label 0 is ignored.

        Args:
            a, b: labels that broadcast against each other.
            cause: op and source line, for units that are coupled by it.
        """
        a, b = torch.broadcast_tensors(a, b)
        for axis in range(a.dim()):
            if a.stride(axis) == 0 and b.stride(axis) == 0:
                a, b = a.narrow(axis, 0, 1), b.narrow(axis, 0, 1)
        self._edges.append((a.reshape(-1), b.reshape(-1)))
        if cause:
            self._causes.append((*self._edges[-1], cause))

    def join(self, a: Tensor, b: Tensor) -> None:
        """Record that labels at the same place of two flat tensors are one unit."""
        self._edges.append((a, b))

    def coupling(self, unit: np.ndarray, one: int) -> str | None:
        """What first couples entries of one axis into a unit: op and source line, if one op does.

        Args:
            unit: int64 (labels,), unit of every label.
            one: the unit.
        """
        for left, right, cause in self._causes:
            a, b = left.numpy(), right.numpy()
            pairs = (a > 0) & (b > 0) & (a != b)
            pairs &= unit[a] == one
            a, b = a[pairs], b[pairs]
            if len(a) and bool((self.owners(a) == self.owners(b)).any()):
                return cause
        return None

    def unite_along(self, labels: Tensor, axes: Sequence[int], cause: str = "") -> Tensor:
        """Unite labels that differ only along `axes`.

        Args:
            labels: labels in canonical form.
            axes: the axes.
            cause: see `unite`.

        Returns:
            One label of each united unit, with size 1 along these axes.
        """
        one = squeeze_constant(labels).amax(list(axes), keepdim=True)  # the first may be padding, without a unit
        self.unite(labels, one, cause)
        return one

    def mix(self, labels: Tensor, axes: Sequence[int], cause: str) -> None:
        """Record a sum of weights along `axes`: it unites their units, except where they only read them.

        A gate masks the weights that read its unit, so that the sum is that of the open units.

        Args:
            labels: labels of the weights.
            axes: the axes of the sum.
            cause: see `unite`.
        """
        labels = squeeze_constant(labels)
        self.mark(labels, self.nonlinear)  # the sum may be that of a norm
        self._mixed.append(edge(labels, labels.amax(list(axes), keepdim=True)))
        self._causes.append((*self._mixed[-1], cause))

    def share(self, a: Tensor, b: Tensor) -> None:
        """Record that a sum makes one weight of two: if one of them reads a unit, so does the other.

        Args:
            a, b: labels of the two weights, which broadcast against each other.
        """
        self._shared.append(edge(squeeze_constant(a), squeeze_constant(b)))

    def divide(self, labels: Tensor, where: str) -> None:
        """Record that these weights are a divisor, which masking would turn into 0/0.

        Args:
            labels: labels of the divisor.
            where: op and source line.
        """
        self.mark(labels, self.nonlinear)
        self._divisors.append((squeeze_constant(labels).reshape(-1), where))

    def serve(self, own: Tensor, units: Tensor, buffer: bool, where: str) -> None:
        """Record that a parameter or buffer is combined with units that vary along more axes than it does.

        Whether its entries belong to the units, or all of it serves each unit, as a norm's weight shared by attention
        heads does, depends on what else unites the units, and is decided by `resolve`.

        Args:
            own: labels of the parameter or buffer, in the shape of `units`.
            units: labels of the units.
            buffer: it is made of buffers alone.
            where: op and source line.
        """
        self._served.append(Served(squeeze_constant(own), squeeze_constant(units), buffer, where))

    def align(self, labels: Tensor, multiple: int) -> None:
        """Record that a kernel takes these units in multiples of some number only.

        Args:
            labels: the labels.
            multiple: the number.
        """
        self._aligned.append((squeeze_constant(labels).reshape(-1), multiple))

    def multiples(self, unit: np.ndarray) -> np.ndarray:
        """The number in whose multiples each unit's group may change.

        Args:
            unit: int64 (labels,), unit of every label.

        Returns:
            int64 (labels,), the number at each unit's number.
        """
        found = np.ones(self.starts[-1], dtype=np.int64)
        for labels, multiple in self._aligned:
            own = distinct(unit[labels.numpy()], self.starts[-1])
            found[own] = np.lcm(found[own], multiple)
        return found

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Record that the units of these labels keep their size.

        Args:
            labels: the labels.
            reason: why.
        """
        self._frozen.append((squeeze_constant(labels).reshape(-1), reason))

    def mark(self, labels: Tensor, roles: set[Key]) -> None:
        """Add the parameter axes that own these labels to a role.

        Args:
            labels: the labels.
            roles: `reads`, `produces` or `nonlinear`, changed in place.
        """
        own = distinct(squeeze_constant(labels).numpy(), self.starts[-1])
        roles.update(self.slots[i] for i in set(self.owners(own[own > 0]).tolist()))

    def touch(self, labels: Tensor) -> None:
        """Record that one op computes with these units; units that other ops compute with form other groups.

        Args:
            labels: the labels.
        """
        self._touched.append(squeeze_constant(labels).reshape(-1))

    def treatment(self, unit: np.ndarray) -> np.ndarray:
        """Hash the set of ops that compute with each unit.

        Args:
            unit: int64 (labels,), unit of every label.

        Returns:
            uint64 (labels,), the hash at each unit's number.
        """
        rng = np.random.default_rng(1)
        mark = np.zeros(self.starts[-1], dtype=np.uint64)
        for labels in self._touched:
            mark[distinct(labels.numpy(), len(mark))] += rng.integers(1, 2**63, dtype=np.uint64)
        total = np.zeros_like(mark)
        np.add.at(total, unit, mark)
        return total

    def owners(self, labels: np.ndarray) -> np.ndarray:
        """Index in `slots` of the owner of each label.

        Args:
            labels: int64 (n,), positive.

        Returns:
            int64 (n,).
        """
        return np.searchsorted(np.array(self.starts), labels, side="right") - 1

    def _frozen_divisors(self) -> list[tuple[Tensor, str]]:
        """Labels of divisors that a closed gate would make zero, once all reading weights are known."""
        masked = np.array([slot in self.reads for slot in self.slots])
        found = []
        for labels, where in self._divisors:
            own = labels[labels > 0]
            hit = own[torch.from_numpy(masked[self.owners(own.numpy())])]
            if len(hit):
                found.append((hit, f"a closed unit would divide zero by zero at {where}"))
        return found

    def _spread_reads(self) -> None:
        """Apply the records of `share`, once all reading weights are known."""
        pairs: set[tuple[int, int]] = set()
        for a, b in self._shared:
            both = (a > 0) & (b > 0)
            pairs.update(zip(self.owners(a[both].numpy()).tolist(), self.owners(b[both].numpy()).tolist(), strict=True))
        before = -1
        while len(self.reads) != before:
            before = len(self.reads)
            for i, j in pairs:
                if self.slots[i] in self.reads or self.slots[j] in self.reads:
                    self.reads.update((self.slots[i], self.slots[j]))

    def resolve(self) -> tuple[np.ndarray, dict[int, str]]:
        """Join the recorded edges into units.

        Returns:
            int64 (labels,), unit of every label; and unit -> reason for the frozen units.
        """
        self._spread_reads()
        total = self.starts[-1]
        masked = np.zeros(total, dtype=bool)  # zero where a unit is closed, so that sums over them are exact
        for i, slot in enumerate(self.slots):
            masked[self.starts[i] : self.starts[i + 1]] = slot in self.reads - self.produces
        edges = list(self._edges)
        for a, b in self._mixed:
            keep = torch.from_numpy(~(masked[a.numpy()] & masked[b.numpy()]))
            edges.append((a[keep], b[keep]))
        unit, decided = decide(total, edges, self._served)
        reasons: dict[int, str] = {}
        for labels, reason in [*self._frozen, *self._frozen_divisors(), *decided]:
            for u in distinct(unit[labels.numpy()], total):
                if u > 0:
                    reasons.setdefault(int(u), reason)
        return unit, reasons
