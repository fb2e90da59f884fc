"""Names of layers that are alike but for a number, as one name."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.\[])")  # a whole part of a dotted name


def pattern(name: str) -> str:
    """Replace every number that is a part of a dotted name by a star.

    Args:
        name: of a module or tensor.

    Example:
        >>> pattern("blocks.11.fc2.weight[1]"), pattern("conv1")
        ('blocks.*.fc2.weight[1]', 'conv1')
    """
    return _NUMBER.sub("*", name)


def joined(names: Sequence[str]) -> str:
    """Write names of one `pattern` as one: a number that differs becomes its ranges.

    Args:
        names: at least one, all different. If several numbers differ, each of them becomes a star.

    Example:
        >>> joined(["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp", "blocks.5.mlp"])
        'blocks.0-2,5.mlp'
        >>> joined(["a.0.b.1", "a.1.b.0"])
        'a.*.b.*'
    """
    columns = list(zip(*(map(int, _NUMBER.findall(name)) for name in names), strict=True))
    differ = [len(set(column)) > 1 for column in columns]
    texts = iter([
        str(column[0]) if not varies else "*" if sum(differ) > 1 else _ranges(column)
        for column, varies in zip(columns, differ, strict=True)
    ])  # fmt: skip
    return _NUMBER.sub(lambda _: next(texts), names[0])


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges: 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
