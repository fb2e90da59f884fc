"""Choose the parameters whose single weights get gates."""

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from torch import nn

from npn._utils.patterns import as_patterns, matches
from npn.errors import ConfigurationError
from npn.structure import Structure


def named_weights(model: nn.Module, patterns: str | Iterable[str]) -> tuple[str, ...]:
    """Find the parameters with two or more axes that patterns name, directly or by the module that owns them.

    Args:
        model: the model.
        patterns: shell-style patterns.

    Returns:
        Their names, in the model's order; a parameter with several names has its first.

    Raises:
        ConfigurationError: a pattern names no such parameter, or one whose gradients are sparse.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> named_weights(model, "*"), named_weights(model, ["2"])
        (('0.weight', '2.weight'), ('2.weight',))
    """
    given = as_patterns(patterns, "unstructured") or []
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    called: dict[str, set[str]] = {}  # name -> all that a pattern may call it by
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1 and (parameter.is_floating_point() or parameter.is_complex()):
            called.setdefault(first[id(parameter)], set()).update({name, name.rpartition(".")[0] or name})
    chosen = set[str]()
    for pattern in given:
        hits = {name for name, others in called.items() if any(matches(other, [pattern]) for other in others)}
        if not hits:
            near = get_close_matches(pattern, called, n=5, cutoff=0.0)
            raise ConfigurationError(
                f"unstructured: pattern {pattern!r} matches no parameter with two or more axes; the nearest are: "
                f"{', '.join(near) or 'none, the model has no such parameter'}"
            )
        chosen |= hits
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and first[id(module.weight)] in chosen:
            raise ConfigurationError(
                f"unstructured: {path}.weight has sparse gradients, which cannot be masked weight by weight; build the "
                "embedding with sparse=False, or leave it out"
            )
    return tuple(name for name in called if name in chosen)


def with_single_weights(structure: Structure, model: nn.Module, patterns: str | Iterable[str]) -> Structure:
    """The structure with the parameters that patterns name, see `named_weights`.

    Args:
        structure: the units of the model.
        model: the model.
        patterns: shell-style patterns.

    Raises:
        ConfigurationError: as `named_weights`, or one name stands for a group of units and for single weights.
    """
    names = named_weights(model, patterns)
    both = {part.name for part in structure.parts}.intersection(names)
    for name in sorted(both):
        raise ConfigurationError(
            f"unstructured: {name!r} names single weights and the group of units that this parameter produces; leave "
            f"out one of them, the units by skip={name!r}, or give the parameter to a submodule"
        )
    return replace(structure, unstructured=names)
