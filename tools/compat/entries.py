"""The order in which models are tried: one small variant per family first, the libraries in turn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

LIBRARIES = {
    "timm": "compat.timm_models",
    "torchvision": "compat.torchvision_models",
    "transformers": "compat.transformers_models",
    "smp": "compat.smp_models",
    "diffusers": "compat.diffusers_models",
    "monai": "compat.monai_models",
}


@dataclass(frozen=True)
class Entry:
    """One model of a library.

    Attributes:
        library: as users call it.
        module: builds it, by `build(name) -> (model, example inputs)`.
        family, name: variants of one architecture share the family.
        package: the distribution that holds the library.
        variant: 0 for the first of its family.
        preload: modules that building it imports.
    """

    library: str
    module: str
    family: str
    name: str
    package: str
    variant: int
    preload: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Identity of a model among the records."""
        return self.library, self.name


def entries(modules: dict[str, str] | None = None) -> list[Entry]:
    """Every model in the order of the sweep, always the same one. No library is imported.

    Args:
        modules: library -> module with `PACKAGE`, `PRELOAD` and `names()`; those of `LIBRARIES` if not given.
    """
    rounds: dict[int, list[list[Entry]]] = {}
    for library, module in (LIBRARIES if modules is None else modules).items():
        table = import_module(module)
        for variant, found in _by_variant(library, module, table).items():
            rounds.setdefault(variant, []).append(found)
    return [entry for variant in sorted(rounds) for entry in in_turn(rounds[variant])]


def _by_variant(library: str, module: str, table: Any) -> dict[int, list[Entry]]:
    seen: dict[str, int] = {}
    found: dict[int, list[Entry]] = {}
    for family, name in table.names():
        variant = seen.get(family, 0)
        seen[family] = variant + 1
        entry = Entry(library, module, family, name, table.PACKAGE, variant, tuple(table.PRELOAD))
        found.setdefault(variant, []).append(entry)
    return found


def in_turn(lines: Iterable[Sequence[Any]]) -> list[Any]:
    """One item of each line, then the next of each, until all are used up.

    Example:
        >>> in_turn(["ad", "be", "c"])
        ['a', 'b', 'c', 'd', 'e']
    """
    lines = list(lines)
    longest = max((len(line) for line in lines), default=0)
    return [line[i] for i in range(longest) for line in lines if i < len(line)]


def table(text: str) -> list[tuple[str, str]]:
    """`family: name name` per line, as pairs of family and name.

    Example:
        >>> table("vgg: vgg11 vgg13")
        [('vgg', 'vgg11'), ('vgg', 'vgg13')]
    """
    lines = [line.partition(":") for line in text.strip().splitlines()]
    return [(family.strip(), name) for family, _, names in lines for name in names.split()]
