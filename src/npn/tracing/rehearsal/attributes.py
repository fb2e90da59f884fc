"""Find integers that modules compute with and that must follow a group's size: `num_heads`, `groups`, `shape[0]`."""

import itertools
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from npn._utils.models import is_torch_layer
from npn.modules import integers, parsed
from npn.structure import Attribute, Group, Slot, Structure

# integer attributes that torch's own layers compute with; their other ones only describe the parameters
_SEMANTIC = ("groups", "num_groups", "num_features", "hidden_size", "input_size", "proj_size", "num_heads", "embed_dim",
             "d_model", "unflattened_size[0]", "unflattened_size[1]", "unflattened_size[2]")  # fmt: skip

# attributes whose axis is certain: kind of module, (parameter, axis), attribute
_KNOWN: tuple[tuple[type[nn.Module], tuple[str, int], str], ...] = (
    (nn.modules.conv._ConvNd, ("weight", 0), "groups"),
    (nn.GroupNorm, ("weight", 0), "num_groups"),
    (nn.modules.instancenorm._InstanceNorm, ("weight", 0), "num_features"),
    (nn.RNNBase, ("weight_hr_l0", 0), "proj_size"),
    (nn.RNNBase, ("weight_hr_l0", 1), "hidden_size"),
    (nn.RNNBase, ("weight_hh_l0", 1), "hidden_size"),  # of a layer that is not projected
    (nn.RNNBase, ("weight_ih_l0", 1), "input_size"),
)


Trial = tuple[Attribute, ...]  # attributes that follow a group together

_EACH = 4  # entries per unit that an attribute may count, beside those of the group's own axes
_DIVISORS = 8  # tried at most
_TRIALS = 48  # combinations of attributes tried at most


def known(model: nn.Module, structure: Structure, group: Group) -> tuple[Attribute, ...]:
    """Find attributes of torch's own layers that follow this group, by type of layer; a rehearsal confirms them.

    Args:
        model: the model.
        structure: its structure.
        group: the group.

    Returns:
        (module path, attribute, amount per unit) entries.
    """
    found: dict[tuple[str, str], Attribute] = {}
    for path, slot in _bare(structure, group):
        module = model.get_submodule(path)
        each = _each(slot, structure, module.num_groups) if isinstance(module, nn.GroupNorm) else 0
        if each:
            found[path, "num_groups"] = (path, "num_groups", each)
    for slot in group.slots:
        path, _, leaf = slot.tensor.rpartition(".")
        module = model.get_submodule(path)
        projected = isinstance(module, nn.RNNBase) and module.proj_size > 0
        for kind, place, name in _KNOWN:
            if not isinstance(module, kind) or place != (leaf, slot.axis) or (projected and leaf == "weight_hh_l0"):
                continue
            each = _each(slot, structure, getattr(module, name))
            if each:
                found.setdefault((path, name), (path, name, each))
        for norm in structure.norms if group.normed else ():  # one that has no weight to say its size
            module = model.get_submodule(norm.path)
            bare = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and "weight" not in dict(module.named_parameters())
            if bare and norm.key == slot.key:
                found[norm.path, "normalized_shape"] = (norm.path, "normalized_shape", slot.index.shape[1])
    return tuple(found.values())


def _each(slot: Slot, structure: Structure, value: int) -> int:
    """The amount of an attribute per unit; 0 if it does not divide evenly, such as `groups` of a dense convolution."""
    units, entries = slot.index.shape
    size = structure.shapes[slot.tensor][slot.axis]
    each, rest = divmod(entries * value, size)
    return each if rest == 0 and value > 1 and units * entries == size else 0


def candidates(model: nn.Module, structure: Structure, group: Group, held: bool) -> list[Attribute]:
    """Find integer attributes equal to a size of the group, in the modules that own its tensors and in their ancestors.

    Args:
        model: the model.
        structure: its structure; attributes that belong to another group are left out.
        group: the group.
        held: also those in objects and dicts, such as `config.num_heads`.

    Returns:
        (module path, attribute, amount per unit) entries.
    """
    taken = {(path, name) for g in structure.groups if g.name != group.name for path, name, _ in g.attributes}
    sizes = {group.size * each: each for each in range(1, _EACH + 1)}
    for slot in group.slots:
        each = slot.index.shape[1]
        sizes.setdefault(group.size * each, each)
    around = [path for slot in group.slots for path in (*_ancestors(slot.tensor), "")]
    paths = dict.fromkeys((*around, *(path for path, _ in _bare(structure, group))))
    found = []
    for path in paths:
        module = model.get_submodule(path)
        own = is_torch_layer(module)
        for name, value in integers(module).items():
            if (own and name not in _SEMANTIC) or (not held and _is_held(name)):
                continue
            if value in sizes and value > 1 and (path, name) not in taken:
                found.append((path, name, sizes[value]))
    return found


def _bare(structure: Structure, group: Group) -> list[tuple[str, Slot]]:
    """Modules without tensors that the units go into, each with the first slot of these."""
    slots = {slot.key: slot for slot in reversed(group.slots)}
    met = ((path, [slots[place] for place in places if place in slots]) for path, places in structure.bare.items())
    return [(path, found[0]) for path, found in met if found]


def _is_held(name: str) -> bool:
    """Whether an integer is in an object or dict of its module, which other modules may share."""
    entry = parsed(name)[1]
    return entry != "" and not entry[1:-1].isdigit()


@dataclass(frozen=True)
class Trials:
    """Combinations of attributes that may have to follow a group.

    Those that follow by type of layer are in all of them. Others come by name, since a class of module has the same one
    in each of its instances: all of a name, or those where the group is produced.

    Attributes:
        base: those that follow by type of layer.
        options: the others.
        made: paths of the modules in which the group is produced.
    """

    base: Trial
    options: Trial
    made: Set[str]

    def by_name(self) -> list[Trial]:
        """Those by type of layer alone, then with all others, with all where it is produced, with those of one name."""
        made = tuple(entry for entry in self.options if entry[0] in self.made)
        return self._distinct([(), self.options, made, *self._sets()])

    def combined(self, moved: Set[Attribute]) -> list[Trial]:
        """All names but one, pairs of names, single attributes; those first in which more entries count.

        Args:
            moved: entries without which the failure is the same, to the letter, do not count; trials of them are left
                out.
        """
        options, sets, found = self.options, self._sets(), list[Trial]()
        if len(sets) > 3:  # with fewer names these are the pairs, or come below
            found = [tuple(entry for entry in options if entry[1] != name) for name in {n: 0 for _, n, _ in options}]
        pairs = [pair for kind in zip(*self._variants(), strict=True) for pair in itertools.combinations(kind, 2)]
        pairs.sort(key=lambda pair: sum(not moved & set(one) for one in pair))
        found += [(*a, *b) for a, b in pairs]
        found = [trial for trial in (*found, *((entry,) for entry in options)) if moved & set(trial)]
        return self._distinct(found)[:_TRIALS]

    def without(self, names: Set[str]) -> "Trials":
        """The same without some names, but for those that follow by type of layer.

        Args:
            names: see `npn.modules.integers`.
        """
        return replace(self, options=tuple(entry for entry in self.options if entry[1] not in names))

    def nearest(self, trial: Trial) -> Trial:
        """A trial in which integers of objects and dicts follow only in the modules nearest to where it is produced.

        Args:
            trial: with entries of `options`.
        """
        depths: dict[str, int] = {}
        for path, name, _ in trial:
            if path in self.made and _is_held(name):
                depths[name] = max(path.count("."), depths.get(name, 0))
        return tuple(e for e in trial if e[1] not in depths or (e[0] in self.made and e[0].count(".") == depths[e[1]]))

    def _sets(self) -> list[Trial]:
        """Attributes of each name: all of them, and those where the group is produced."""
        return list(dict.fromkeys(trial for variants in self._variants() for trial in variants))

    def _variants(self) -> list[tuple[Trial, Trial]]:
        """For each name all attributes of it, and those where the group is produced, or all without any."""
        names = dict.fromkeys(name for _, name, _ in self.options)
        same = [tuple(entry for entry in self.options if entry[1] == name) for name in names]
        return [(all_, tuple(entry for entry in all_ if entry[0] in self.made) or all_) for all_ in same]

    def _distinct(self, trials: Sequence[Trial]) -> list[Trial]:
        return list(dict.fromkeys((*self.base, *trial) for trial in trials))


def trials(model: nn.Module, structure: Structure, group: Group, held: bool = False) -> Trials:
    """The attributes that may have to follow a group.

    Args:
        model: the model.
        structure: its structure.
        group: the group.
        held: see `candidates`.
    """
    base = known(model, structure, group)
    options = tuple(entry for entry in candidates(model, structure, group, held) if entry not in base)
    made = {path for slot in group.slots if not slot.reads for path in _ancestors(slot.tensor)}
    return Trials(base, options, made)


def _ancestors(tensor: str) -> list[str]:
    """Paths of the module that owns a tensor and of those around it, without the model itself."""
    paths, path = [], tensor.rpartition(".")[0]
    while path:
        paths.append(path)
        path = path.rpartition(".")[0]
    return paths


def divisors(model: nn.Module, structure: Structure, kind: Sequence[Group]) -> list[int]:
    """Numbers in whose multiples groups may change: those that the graph or a module names and that divide all sizes.

    Args:
        model: whose convolutions have groups.
        structure: whose graph names numbers.
        kind: groups that change alike.

    Returns:
        Ascending, above 1 and below every size.
    """
    named = set(structure.numbers)
    named |= {m.groups for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    # a set of m units leaves the others where they were only if each unit is one entry of every axis
    if any(slot.index.shape[1] > 1 for group in kind for slot in group.slots):
        return []
    return sorted(m for m in named if m > 1 and all(g.size % m == 0 and m < g.size for g in kind))[:_DIVISORS]


def pattern(group: Group) -> tuple[str, ...]:
    """Describe a group's slots with the numbers in their names blanked, so that repeated layers look alike.

    Args:
        group: the group.
    """
    return tuple(f"{re.sub(r'[0-9]+', '#', slot.tensor)}[{slot.axis}]x{slot.index.shape[1]}" for slot in group.slots)


def transfer(
    structure: Structure, source: Group, target: Group, attributes: Sequence[Attribute]
) -> tuple[Attribute, ...]:
    """Translate attributes of one group to the corresponding modules of a repeated layer.

    Args:
        structure: with both groups.
        source: group that the attributes belong to.
        target: group of the repeated layer, with corresponding slots.
        attributes: (module path, attribute, amount per unit) entries.

    Returns:
        The entries with the module paths of `target`.
    """
    pairs: dict[str, str] = {}
    for a, b in zip(source.slots, target.slots, strict=True):
        x, y = a.tensor.split("."), b.tensor.split(".")
        for i in range(1, len(x)):
            pairs[".".join(x[:i])] = ".".join(y[:i])
    ours, theirs = ([path for path, _ in _bare(structure, group)] for group in (source, target))
    pairs = dict(zip(ours, theirs, strict=False)) | pairs
    return tuple((pairs.get(path, path), name, each) for path, name, each in attributes)
