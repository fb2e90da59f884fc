"""Units, input columns and branches: what can have gates, by the places where it lies."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npn._utils import cpu

Key = tuple[str, int]  # tensor name, axis
Attribute = tuple[str, str, int]  # module path, name of an integer in it, its amount per unit of a group


@dataclass(frozen=True)
class Slot:
    """Positions of one group's units along one axis of one parameter or buffer.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: the axis.
        index: int64 (units, entries per unit), positions along the axis.
        reads: whether the tensor reads the units (a closed gate zeroes these entries).
        plain: whether reading is all that is done with these entries; not if the weight also makes the units or is
            combined with them, or if a norm or another function that is not linear is taken of it.
    """

    tensor: str
    axis: int
    index: Tensor
    reads: bool
    plain: bool = True

    @property
    def key(self) -> Key:
        """Tensor name and axis."""
        return (self.tensor, self.axis)


@dataclass(frozen=True)
class Group:
    """Units that can be removed and added one by one.

    Attributes:
        name: module that produces the units, taken from the parameter's name.
        size: number of units.
        slots: every (tensor, axis) on which the units lie, producers first.
        attributes: (module path, attribute, amount per unit) of integers that follow the size; one in a tuple is
            named `shape[0]`.
        multiple: units come and go in sets of so many, and a re-trace says where the others are then.
        normed: whether a norm computes its statistics over the units.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    attributes: tuple[Attribute, ...] = ()
    multiple: int = 1
    normed: bool = False


@dataclass(frozen=True)
class Columns:
    """Single input columns of one layer, each with its own gate.

    `Structure.shapes` gives this axis the full length that its producers have; `kept` lists the columns still present.

    Attributes:
        name: module that reads the columns, followed by ".columns".
        tensor: name of the layer's weight.
        axis: input axis of the weight.
        kept: int64 (columns,), positions on the full axis of the columns that physically exist, ascending.
    """

    name: str
    tensor: str
    axis: int
    kept: Tensor

    @property
    def key(self) -> Key:
        """Tensor name and axis."""
        return (self.tensor, self.axis)

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.tensor.rpartition(".")[0]

    @property
    def size(self) -> int:
        """Number of columns that physically exist."""
        return len(self.kept)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The single slot of the columns, in the form of a group whose units have one entry each."""
        return (Slot(self.tensor, self.axis, self.kept[:, None], reads=True),)


@dataclass(frozen=True)
class Branches:
    """Submodules whose output is added to another tensor; each has one gate, and together they form one group.

    Attributes:
        name: name of the group.
        paths: paths of the submodules, in the model's order.
        scales: for each submodule, the parameters that its gate multiplies; its output is zero when they are zero.
    """

    name: str
    paths: tuple[str, ...]
    scales: tuple[tuple[str, ...], ...]

    @property
    def size(self) -> int:
        """Number of branches that physically exist."""
        return len(self.paths)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Empty: a branch is not an entry of an axis, its gate multiplies whole parameters."""
        return ()

    def home(self, name: str) -> int:
        """Find the branch that contains a tensor or module.

        Args:
            name: name of the tensor or module.

        Returns:
            Number of the branch; the number of branches if none contains it.
        """
        return next((i for i, path in enumerate(self.paths) if inside(name, [path])), self.size)


def inside(name: str, paths: Iterable[str]) -> bool:
    """Whether a tensor or module lies in one of the submodules.

    Args:
        name: name of the tensor or module.
        paths: paths of the submodules.
    """
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def remaining(size: int, gone: Sequence[int] | Tensor) -> Tensor:
    """Which of some units stay, bool (size,).

    Args:
        size: number of units.
        gone: numbers of those that go.
    """
    stays = cpu.ones(size, dtype=torch.bool)
    stays[gone] = False
    return stays
