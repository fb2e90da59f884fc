"""Norms under masks: while weights are masked, statistics are those of the open units."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from npn.errors import PlasticityError
from npn.functional.norms import over_open
from npn.structure import Norm, Structure, gate_of_entries
from npn.tracing.capture.environment import unfused_layers
from npn.tracing.capture.norm_calls import NormCall, NormCalls, paths_of


class OpenNorms:
    """The norms of a model that normalise over units with gates.

    Args:
        model: the model.
        structure: its structure.
        device: of the model.
    """

    def __init__(self, model: nn.Module, structure: Structure, device: torch.device) -> None:
        self.units = structure.units
        keys = {norm.key for norm in structure.norms}
        index = gate_of_entries(structure, lambda slot: slot.key in keys)
        self.index = {key: own.to(device) for key, own in index.items()}
        self.norms = {(n.path, n.number): n for n in structure.norms if n.key in self.index}
        self.expected: dict[str, set[int]] = {}
        for path, number in self.norms:
            self.expected.setdefault(path, set()).add(number)
        self.paths = paths_of(model) if self.norms else {}

    @contextlib.contextmanager
    def under(self, mask: Tensor, inside: nn.Module | None = None) -> Iterator[None]:
        """Inside the context, the norms of the model are computed over the open units.

        Args:
            mask: (gates,), of which a gradient may be taken.
            inside: module whose call is under way already.
        """
        if not self.norms:
            yield
            return
        eager = torch.compiler.set_stance("force_eager")  # compiled code would not ask which units are open
        # PyTorch's fused encoder layer has its norms inside
        with unfused_layers(), eager, NormCalls(self.paths, self._answer(mask), self._left) as calls:
            if inside is not None:
                calls.begin(inside)
            yield

    def _answer(self, mask: Tensor) -> Callable[..., Any]:
        def answer(call: NormCall, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            norm = self.norms.get((call.path, call.number))
            if norm is None:
                return function(*args, **kwargs)
            if call.again:
                raise PlasticityError(
                    f"a checkpoint inside the forward pass of {norm.path or 'the model'} computes {norm.name} again, "
                    "where its channels cannot be told apart; checkpoint whole modules, or attach with streams=False"
                )
            x, rest, named = _first(args, kwargs)
            index = self.index[norm.key]
            if call.name != norm.name or x.dim() < -norm.axis or x.shape[norm.axis] != len(index):
                raise PlasticityError(_other(norm, f"{call.name} of shape {tuple(x.shape)}"))
            padded = torch.cat([mask[: self.units], mask.new_ones(1)])
            z = padded[index].view(-1, *[1] * (-norm.axis - 1))
            return over_open(function, z, x, *rest, **named)

        return answer

    def _left(self, path: str, numbers: frozenset[int]) -> None:
        """Raise if a norm was not called that the trace has seen."""
        missing = self.expected.get(path, set()) - numbers
        if missing:
            raise PlasticityError(_other(self.norms[path, min(missing)], "no such call"))


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The tensor that is reduced, and the other arguments."""
    if args:
        return args[0], args[1:], dict(kwargs)
    rest = dict(kwargs)
    return rest.pop("input" if "input" in rest else "x"), (), rest


def _other(norm: Norm, found: str) -> str:
    return (
        f"the forward pass of {norm.path or 'the model'} has another order of norms than it had when it was traced: "
        f"expected {norm.name} as number {norm.number}, found {found}; attach with streams=False, or let it call the "
        "same norms at every call"
    )
