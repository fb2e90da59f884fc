"""Models to which `torch.distributed.fsdp.fully_shard` was applied: check them, resize a parameter, make them plain.

All use of the inside of `fully_shard`, which torch may change in any version, is in this file.
"""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from npn._utils.shards import is_shard, local
from npn.errors import ConfigurationError, DistributedError

# what a sharded parameter keeps when its size changes: its place in the model, its hooks, its dtypes
_KEPT = ("_module_info", "_post_load_hook_handle", "_param_fqn")
_NEWER = ("_orig_param_uid",)  # likewise, where there is one
_DTYPES = ("orig_dtype", "param_dtype", "reduce_dtype")
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules inside a model to which `fully_shard` was applied.

    Args:
        model: any module.
    """
    library = sys.modules.get("torch.distributed.fsdp")
    found = getattr(library, "FSDPModule", None)
    return [] if found is None else [module for module in model.modules() if isinstance(module, found)]


def reshard(model: nn.Module) -> None:
    """Free whole parameters that a forward pass has left, so that the next one gathers them anew.

    Args:
        model: sharded or plain.
    """
    for module in sharded_modules(model):
        module.reshard()


def check_sharded(model: nn.Module, wholly: bool = True) -> None:
    """Raise unless `fully_shard` has split every parameter of a model by rows over all processes, or groups of them.

    Args:
        model: to which `fully_shard` was applied.
        wholly: whether that was done to all of it; if not, plain parameters are passed over.

    Raises:
        ConfigurationError: naming the first parameter that is laid out otherwise.
    """
    from torch.distributed.tensor import Replicate, Shard

    known, allowed = owners(model), ((Shard(0),), (Replicate(), Shard(0)))
    for name, parameter in model.named_parameters():
        if not is_shard(parameter):
            if not wholly:
                continue
            raise ConfigurationError(
                f"{name} is not sharded, and its gradient would differ between processes; call fully_shard on the "
                "whole model, without ignored_params"
            )
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        if id(parameter) not in known or placements not in allowed or mesh.size() != dist.get_world_size():
            raise ConfigurationError(
                f"expected {name} split by rows over all {dist.get_world_size()} processes by fully_shard, got "
                f"{placements} on a mesh of shape {tuple(mesh.shape)}. Tensor parallelism and other placements are not "
                "supported: call fully_shard on whole parameters, with a mesh of one dimension, or of two for replicas "
                "of shards (HSDP)"
            )
    for owner in known.values():
        if owner.offload_to_cpu:
            raise ConfigurationError("CPUOffloadPolicy is not supported: call fully_shard without offload_policy")


def owners(model: nn.Module) -> dict[int, Any]:
    """What `fully_shard` keeps of each parameter.

    Args:
        model: sharded or plain.

    Returns:
        `id` of the parameter -> its `FSDPParam`; empty for a plain model.

    Raises:
        DistributedError: this torch keeps it otherwise.
    """
    reshard(model)
    with _as_known():
        groups = {id(g): g for m in sharded_modules(model) for g in _groups(m._get_fsdp_state())}
        found = {id(each.sharded_param): each for group in groups.values() for each in group.fsdp_params}
        for each in found.values():
            if missing := [name for name in (*_KEPT, "offload_to_cpu", "mesh_info") if not hasattr(each, name)]:
                raise AttributeError(f"FSDPParam has no {missing[0]}")
    return found


def _groups(state: Any) -> list[Any]:
    """The groups of parameters of a sharded module: one, or none, in torch 2.11."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


@contextlib.contextmanager
def _as_known() -> Iterator[None]:
    """Say what is wrong where the inside of `fully_shard` is not what this file expects."""
    try:
        yield
    except (AttributeError, ImportError, TypeError) as error:
        raise DistributedError(
            f"fully_shard of torch {torch.__version__} is built otherwise than in 2.11 and 2.13, which npn knows: "
            f"{error}. Use one of these, or npn.distributed.wrap"
        ) from error


def replace_shard(owner: Any, value: Tensor) -> Callable[[], Callable[[], None]]:
    """Edit: give a sharded parameter another value, of any size; the Parameter object stays the same.

    Args:
        owner: see `owners`.
        value: split by rows over the same processes.
    """
    with _as_known():
        from torch.distributed.fsdp import OffloadPolicy
        from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam, ParamModuleInfo

        parameter = owner.sharded_param
        whole = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device="meta"), parameter.requires_grad)
        where = ParamModuleInfo(nn.Module(), "value")  # nothing of the model changes yet
        policies = None, owner.mp_policy, OffloadPolicy()
        fresh = FSDPParam(whole, where, owner.mesh_info, owner.post_forward_mesh_info, owner.device, *policies)
    kept = {name: vars(owner)[name] for name in (*_KEPT, *_NEWER, *_DTYPES) if name in vars(owner)}
    other = nn.Parameter(value, parameter.requires_grad)
    other.__dict__.update(vars(parameter))

    def edit() -> Callable[[], None]:
        before, grad = dict(vars(owner)), parameter.grad

        def undo() -> None:
            torch.utils.swap_tensors(parameter, other)
            vars(owner).clear()
            vars(owner).update(before)
            parameter.grad = grad

        parameter.grad = None
        torch.utils.swap_tensors(parameter, other)
        vars(owner).clear()
        vars(owner).update({**vars(fresh), **kept, "sharded_param": parameter})
        owner.reset_sharded_param()  # pads the rows
        return undo

    return edit


@contextlib.contextmanager
def unsharded(model: nn.Module, value: Callable[[nn.Parameter], Tensor] | None = None) -> Iterator[None]:
    """Inside the context a model is as it was before `fully_shard`, so that it can be traced and copied.

    Args:
        model: sharded; nothing happens to a plain one.
        value: parameter -> its value inside the context; none has one if it is not given, and takes no memory.
    """
    sharded = sharded_modules(model)
    if not sharded:
        yield
        return
    reshard(model)
    put_back = list[Callable[[], Any]]()
    plain = dict[int, nn.Parameter]()
    with _as_known():
        from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

        states = (STATE_KEY, REGISTRY_KEY)
    try:
        for module in model.modules():
            own = vars(module)
            parameters = OrderedDict(own["_parameters"])
            for name, parameter in parameters.items():
                if parameter is not None and is_shard(parameter):
                    if id(parameter) not in plain:
                        whole = torch.empty((), dtype=parameter.dtype, device=local(parameter).device)
                        whole = whole.expand(parameter.shape) if value is None else value(parameter)
                        plain[id(parameter)] = nn.Parameter(whole, parameter.requires_grad)
                    parameters[name] = plain[id(parameter)]
            changed: dict[str, Any] = {"_parameters": parameters}
            for name in _HOOKS:
                changed[name] = OrderedDict((key, hook) for key, hook in own[name].items() if not _of_fsdp(hook))
            there, marked = changed["_forward_pre_hooks"], own["_forward_pre_hooks_with_kwargs"]
            changed["_forward_pre_hooks_with_kwargs"] = OrderedDict((k, v) for k, v in marked.items() if k in there)
            put_back.append(_changed(own, changed, [name for name in (*states, *_MARKS) if name in own]))
            if module in sharded:
                cls: Any = type(module)
                put_back.append(partial(setattr, module, "__class__", cls))
                module.__class__ = cls.__mro__[getattr(cls, "_orig_cls_mro_index", 2)]
        yield
    finally:
        for undo in reversed(put_back):
            undo()


def _changed(own: dict[str, Any], changed: dict[str, Any], gone: list[str]) -> Callable[[], None]:
    """Change the attributes of a module; returns what puts them back."""
    before = {name: own[name] for name in (*changed, *gone)}
    own.update(changed)
    for name in gone:
        del own[name]
    return lambda: own.update(before)


def _of_fsdp(hook: Any) -> bool:
    """Whether `fully_shard` has registered a hook."""
    hook = getattr(hook, "hook", hook)  # load_state_dict wraps them
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")
