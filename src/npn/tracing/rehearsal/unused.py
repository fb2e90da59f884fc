"""Which integers of modules the code computes with: those in whose place nothing else can stand.

A config has dozens of numbers, most of which only the constructors have read. Trying each as one that follows a group's
size takes a run; to see that many are not read takes one for all of them.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from torch import nn

from npn.modules import holding, integers, replaced


class Unusable:
    """Stands in the place of an integer: whatever code does with it, but ask whether it is None, raises."""

    def _raise(self, *_: Any) -> NoReturn:
        raise TypeError("an integer is used that was taken away to see whether it is")

    __eq__ = __ne__ = __hash__ = __bool__ = __repr__ = __str__ = __format__ = _raise


def taken_away(model: nn.Module, names: Collection[str]) -> AbstractContextManager[None]:
    """Put something unusable in the place of all integers of some names, in all modules, inside the context.

    Args:
        model: the model.
        names: see `npn.modules.integers`.
    """
    values: dict[tuple[nn.Module, str], Any] = {}
    for module in model.modules():
        present = integers(module)
        taken = replaced(module, {name: Unusable() for name in names if name in present})
        values |= {(module, attribute): value for attribute, value in taken.items()}
    return holding(values)


def needed(names: list[str], works_without: Callable[[list[str]], bool]) -> set[str]:
    """The names without which the code does not work, found by halves.

    Args:
        names: to look at.
        works_without: whether it works where all of some names are taken away.

    Example:
        >>> sorted(needed(["a", "b", "c", "d"], lambda names: "c" not in names))
        ['c']
    """
    if not names or works_without(names):
        return set()
    if len(names) == 1:
        return set(names)
    half = len(names) // 2
    return needed(names[:half], works_without) | needed(names[half:], works_without)
