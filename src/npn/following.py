"""Wrappers and copies that follow the sizes of an attached model: averages, momentum encoders, teachers."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from npn._utils.models import model_tensors
from npn._utils.rng import devices_of, preserved_rng
from npn._utils.validation import instance
from npn._utils.warning import warn
from npn.errors import ConfigurationError
from npn.gates import Gates
from npn.masking import MaskedCall, MaskedWeights
from npn.masking.calls import attached_parts
from npn.structure import Structure
from npn.surgery import Finish, Plan, apply_plan, check_shapes, new_entries

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Follower(Protocol):
    """A wrapper or a copy that depends on the model's sizes; listed in `Plasticity.followers`."""

    def renew(self) -> None:
        """Adapt to new sizes."""


class FollowingCopy(MaskedCall):
    """A copy of the model in which the model's closed units are closed, and which every resize resizes along.

    The hooks on the copy keep this object alive; it ends with the copy.

    Args:
        gates: the model's gates; the copy has none of its own.
        original: the model's masked weights.
        copied: the copy, with the model's names and shapes.

    Attributes:
        original: the argument.
        gates, weights: the model's gates, and the copy's masked weights.
    """

    def __init__(self, gates: Gates, original: MaskedWeights, copied: nn.Module) -> None:
        super().__init__(gates, MaskedWeights(copied, original.structure))
        self.original = original
        self.register(copied)

    @property
    def model(self) -> nn.Module:
        """The copy, with its own weights restored if a call was interrupted."""
        self.recover()
        return self.weights.model

    def mask(self) -> Tensor | None:
        """The model's deterministic mask, on the copy's device."""
        mask = self.gates.deterministic_mask()
        return None if mask is None else mask.to(self.weights.device)

    def resize(self, plan: Plan, optimizers: Sequence[Optimizer], finish: Finish | None = None) -> None:
        """Resize the copy by the model's plan: kept entries keep their values, new ones are those of the model.

        Args:
            plan: which the model has followed already.
            optimizers: whose state follows, if they hold parameters of the copy.
            finish: changes the values afterwards, in place.
        """
        copied = self.model
        with preserved_rng(devices_of(copied)):
            apply_plan(copied, plan, optimizers)
            take_new_entries(copied, self.original.model, plan)
            if finish is not None:
                finish({name: tensor.data for name, tensor in model_tensors(copied).items()})
        self.weights.restructure(copied, plan.after)

    def renew(self) -> None:
        """End following, with a warning, if the model has changed without a plan, as `npn.load` changes it."""
        problem = unlike(self.model, self.original.model)
        if problem is not None:
            self.stop()
            warn(
                f"a copy no longer follows the model, which has been loaded: {problem}. Make the copy anew, "
                "copy.deepcopy(plastic.model), and give it to plastic.follow"
            )

    def stop(self) -> None:
        """Remove the hooks from the copy."""
        self.weights.remove()
        self.unregister(self.weights.model)


def follow(followers: MutableMapping[int, Follower], gates: Gates, original: MaskedWeights, copied: nn.Module) -> None:
    """Make a copy of the model follow it.

    Args:
        followers: see `npn.Plasticity.followers`; the copy is added.
        gates, original: of the model.
        copied: the copy, or a module that holds it as `.module`.

    Raises:
        ConfigurationError: it is the model itself, shares parameters with it, or has other names or shapes.
    """
    original.need_whole("a copy that follows the model")
    instance("a copy that follows the model", copied, nn.Module, "a torch.nn.Module")
    inner = inside(copied, original.model)
    problem = unlike(inner, original.model)
    if problem is not None:
        raise ConfigurationError(
            f"expected a copy with the model's names and shapes, got a {type(copied).__name__} in which {problem}; "
            "make it from the model as it is now: copy.deepcopy(plastic.model)"
        )
    own = {id(tensor) for tensor in model_tensors(original.model).values()}
    shared = [name for name, tensor in model_tensors(inner).items() if id(tensor) in own]
    if shared:
        raise ConfigurationError(
            f"the copy shares {shared[0]} with the model, and would be resized twice; give copy.deepcopy(plastic.model)"
        )
    for path, call in attached_parts(inner).items():  # what deepcopy has copied of the model's own gates
        call.weights.remove()
        call.unregister(inner.get_submodule(path))
    follower = FollowingCopy(gates, original, inner)
    followers[id(follower)] = follower


def copies_among(followers: Mapping[int, Follower], structure: Structure | None = None) -> list[FollowingCopy]:
    """The copies among what follows a model.

    Args:
        followers: see `npn.Plasticity.followers`.
        structure: of the model, if the copies are to be compared with it.

    Raises:
        ResizeError: a copy has other shapes than the structure.
    """
    copies = [follower for follower in list(followers.values()) if isinstance(follower, FollowingCopy)]
    if structure is not None:
        for copied in copies:
            check_shapes(copied.model, structure)
    return copies


def resize(
    copies: Sequence[FollowingCopy], plan: Plan, optimizers: Sequence[Optimizer], finish: Finish | None = None
) -> None:
    """Resize copies by the model's plan.

    Args:
        copies: of the model.
        plan, optimizers, finish: see `FollowingCopy.resize`.
    """
    for copied in copies:
        copied.resize(plan, optimizers, finish)


def renew(followers: Mapping[int, Follower]) -> None:
    """Let everything that follows a model adapt to its new sizes.

    Args:
        followers: see `npn.Plasticity.followers`.
    """
    for follower in list(followers.values()):
        follower.renew()


def stop(followers: Mapping[int, Follower]) -> None:
    """End the following of all copies.

    Args:
        followers: see `npn.Plasticity.followers`.
    """
    for copied in copies_among(followers):
        copied.stop()


def followed(followers: Mapping[int, Follower], copied: nn.Module) -> FollowingCopy:
    """Look up a copy that follows a model.

    Args:
        followers: see `npn.Plasticity.followers`.
        copied: what `plastic.follow` was given.

    Raises:
        ConfigurationError: it does not follow the model.
    """
    for follower in copies_among(followers):
        if follower.weights.model in (copied, getattr(copied, "module", None)):
            return follower
    raise ConfigurationError(f"this {type(copied).__name__} does not follow the model: give it to plastic.follow first")


def inside(copied: nn.Module, model: nn.Module) -> nn.Module:
    """The copy inside a wrapper such as `AveragedModel`; the copy itself if it is not wrapped.

    Args:
        copied: the copy, or a module that holds it as `.module`.
        model: the model.
    """
    held = getattr(copied, "module", None)
    wrapped = isinstance(held, nn.Module) and set(model_tensors(copied)) != set(model_tensors(model))
    return held if wrapped and isinstance(held, nn.Module) else copied


def unlike(copied: nn.Module, model: nn.Module) -> str | None:
    """Find the first parameter or buffer in which a copy differs in name or shape; None if there is none.

    Args:
        copied: the copy.
        model: the model.
    """
    ours, theirs = model_tensors(copied), model_tensors(model)
    for name in [*theirs, *ours]:
        if name not in ours:
            return f"there is no {name}"
        if name not in theirs:
            return f"there is {name}, which the model does not have"
        if ours[name].shape != theirs[name].shape:
            return f"{name} has shape {tuple(ours[name].shape)} where the model has {tuple(theirs[name].shape)}"
    return None


def take_new_entries(copied: nn.Module, model: nn.Module, plan: Plan) -> None:
    """Set the entries of a copy that a resize has added to those of the model.

    Args:
        copied: the copy, resized already.
        model: the model, resized already.
        plan: of the resize.
    """
    ours, theirs = model_tensors(copied), model_tensors(model)
    for name, sources in plan.sources.items():
        tensor = ours[name].data
        new = new_entries(sources, tensor.dim(), tensor.device)
        if bool(new.any()):
            tensor.copy_(torch.where(new, theirs[name].data.to(tensor), tensor))
