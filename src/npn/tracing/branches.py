"""Find the parameters that a branch's gate multiplies: run the branch with candidate parameters set to zero."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from npn._utils.inputs import copied
from npn._utils.patterns import matches
from npn.errors import ConfigurationError, TraceError
from npn.modules import absent
from npn.structure import Branches, Structure, inside
from npn.tracing.capture.environment import preserved
from npn.tracing.capture.lines import raising_line
from npn.tracing.capture.warming import outputs_of

_SHOWN = 12  # how many names an error message lists
_MODES = (False, True, False, True)  # training flags to test: eval and train, with two random draws each


@dataclass
class _BranchCalls:
    """Calls of the branches recorded in one forward pass.

    Attributes:
        calls: path -> (positional, keyword) arguments of each branch's last call.
        order: paths of the modules inside the branches, in the order in which they returned.
    """

    calls: dict[str, tuple[Any, Any]]
    order: list[str]


def with_branches(model: nn.Module, example_inputs: Any, structure: Structure, patterns: Sequence[str]) -> Structure:
    """Add gates on the submodules that match, one per submodule.

    Args:
        model: any module; unchanged afterwards.
        example_inputs: see `npn.tracing.trace`.
        structure: the structure without branches.
        patterns: patterns of submodule paths.

    Returns:
        The structure with branches; `structure` itself if there are no patterns.

    Raises:
        ConfigurationError: a pattern matches no submodule, a submodule shares its parameters, or it lies in another
            one.
        TraceError: a gate cannot make a submodule's output zero, or the model fails without the submodule.
    """
    paths = _matching(model, patterns)
    if not paths:
        return structure
    _check_own(model, paths)
    with preserved(model), torch.no_grad():
        model.eval()
        seen = _observe(model, example_inputs, paths)
        scales = tuple(_scales(model, path, seen) for path in paths)
        _check_absent(model, example_inputs, paths, scales)
    name = "branches#2" if any(part.name == "branches" for part in structure.parts) else "branches"
    return replace(structure, branches=Branches(name, tuple(paths), scales))


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Paths of the submodules with parameters that match the patterns; of those inside each other, the outer one.

    `*` matches dots as well, so that `blocks.*` matches the layers of the blocks, too.
    """
    known = [path for path, module in model.named_modules() if path and any(True for _ in module.parameters())]
    found = set[str]()
    for pattern in patterns:
        hits = [path for path in known if matches(path, [pattern])]
        found |= {path for path in hits if not any(path != other and inside(path, [other]) for other in hits)}
        if not hits:
            more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise ConfigurationError(
                f"branches={pattern!r} matches no submodule with parameters; the model has: "
                f"{', '.join(known[:_SHOWN]) or 'none'}{more}"
            )
    return [path for path in known if path in found]


def _check_own(model: nn.Module, paths: Sequence[str]) -> None:
    """Raise if a branch lies inside another one, or shares a parameter with other parts of the model."""
    for path in paths:
        outer = [other for other in paths if other != path and inside(path, [other])]
        if outer:
            raise ConfigurationError(
                f"branch {path!r} lies inside branch {outer[0]!r}; give gates to one of them with branches="
            )
    homes: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        home = next((path for path in paths if inside(name, [path])), "")
        other = homes.setdefault(id(parameter), home)
        if other != home:
            raise ConfigurationError(
                f"branch {home or other!r} shares {name} with other parts of the model, which would lose it; leave it "
                "out of branches="
            )


def _observe(model: nn.Module, example_inputs: Any, paths: Sequence[str]) -> _BranchCalls:
    """Run one forward pass and record the calls of the branches with hooks."""
    seen, handles = _BranchCalls({}, []), []
    for path, module in model.named_modules():
        if path in paths:
            handles.append(module.register_forward_pre_hook(partial(_called, seen, path), with_kwargs=True))
        if inside(path, paths):
            handles.append(module.register_forward_hook(partial(_returned, seen, path)))
    try:
        outputs_of(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if path not in seen.calls:
            raise TraceError(f"branch {path!r} is not called in the forward pass; leave it out of branches=")
    return seen


def _called(seen: _BranchCalls, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Forward pre-hook: record a branch's arguments."""
    seen.calls[path] = copied((args, kwargs))


def _returned(seen: _BranchCalls, path: str, module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: record that a module has returned."""
    seen.order.append(path)


def _scales(model: nn.Module, path: str, seen: _BranchCalls) -> tuple[str, ...]:
    """Find the parameters of one layer of a branch that make the branch's output exactly zero when they are zero.

    Called layers are tried first, from the last to return to the first; layers that are never called directly come
    last.
    """
    branch = model.get_submodule(path)
    owners = {name: [n for n, _ in m.named_parameters(recurse=False)] for name, m in branch.named_modules()}
    called = [name for name in dict.fromkeys(reversed(seen.order)) if inside(name, [path])]
    order = [name[len(path) + 1 :] for name in called]
    order += [name for name in reversed(owners) if name not in order]
    for name in order:
        chosen = [f"{name}.{leaf}".lstrip(".") for leaf in owners.get(name, ())]
        if chosen and all(_silent(branch, path, chosen, seen, training) for training in _MODES):
            return tuple(f"{path}.{leaf}" for leaf in chosen)
    raise TraceError(
        f"no layer of branch {path!r} makes its output zero when its weight and bias are zero; expected one tensor "
        "from a layer with a weight, such as a linear or convolution layer or BatchNorm, and after it only what keeps "
        "zeros. End the branch with such a layer, or leave it out of branches="
    )


def _silent(branch: nn.Module, path: str, chosen: Sequence[str], seen: _BranchCalls, training: bool) -> bool:
    """Whether the output is zero when these parameters are, whatever values the others have.

    All other values are moved off their initial ones, so that a bias initialised to zero is not mistaken for one that
    stays zero.
    """
    values = {name: _moved(tensor, 0.1) for name, tensor in branch.named_parameters()}
    values |= {name: _moved(tensor, 0.1, up=True) for name, tensor in branch.named_buffers()}
    values |= {name: torch.zeros_like(values[name]) for name in chosen}
    args, kwargs = tree_map(lambda x: _moved(x, 1.0) if isinstance(x, Tensor) else x, seen.calls[path])
    with preserved(branch):
        branch.train(training)
        try:
            output = torch.func.functional_call(branch, values, args, kwargs)
        except Exception:
            if training:  # BatchNorm needs several values per channel in training, and one example may give only one
                return True
            raise
    return isinstance(output, Tensor) and bool((output == 0).all())


def _moved(tensor: Tensor, by: float, up: bool = False) -> Tensor:
    """Add normal noise to a floating point tensor, of positive sign if `up` (for variances); copy an integer tensor."""
    if not tensor.is_floating_point():
        return tensor.clone()
    noise = torch.randn_like(tensor)
    return tensor + by * (noise.abs() if up else noise)


def _check_absent(model: nn.Module, example_inputs: Any, paths: Sequence[str], scales: Sequence[Sequence[str]]) -> None:
    """Raise unless the model without its branches computes the same as with their outputs at zero."""
    if _same_without(model, example_inputs, paths, scales) is None:
        return
    for path, names in zip(paths, scales, strict=True):
        problem = _same_without(model, example_inputs, [path], [names])
        if problem is not None:
            raise TraceError(
                f"branch {path!r} cannot go: with a scalar zero in its place {problem}; expected an output that is "
                "added to a tensor of its shape, as in x + branch(x). Leave it out of branches="
            )
    problem = _same_without(model, example_inputs, paths, scales)
    raise TraceError(
        f"the branches {', '.join(paths)} cannot all go: with scalar zeros in their places {problem}; expected a "
        "shortcut beside them. Leave one out of branches="
    )


def _same_without(
    model: nn.Module, example_inputs: Any, paths: Sequence[str], scales: Sequence[Sequence[str]]
) -> str | None:
    """How the model without these branches differs from the model with their outputs at zero, or None."""
    tensors = dict(model.named_parameters())
    silent = {name: torch.zeros_like(tensors[name]) for names in scales for name in names}
    expected = outputs_of(model, example_inputs, silent)
    with _without(model, paths):
        try:
            found = outputs_of(model, example_inputs)
        except Exception as error:
            return f"the model fails at {raising_line(error)}: {type(error).__name__}: {error}"
    alike = len(expected) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )
    return None if alike else "the model's output is another one"


@contextlib.contextmanager
def _without(model: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Replace submodules by `absent` inside the context."""
    homes = [(model.get_submodule(path.rpartition(".")[0])._modules, path.rpartition(".")[2]) for path in paths]
    before = [home[leaf] for home, leaf in homes]
    for home, leaf in homes:
        home[leaf] = absent().eval()
    try:
        yield
    finally:
        for (home, leaf), module in zip(homes, before, strict=True):
            home[leaf] = module
