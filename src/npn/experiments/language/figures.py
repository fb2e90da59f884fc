"""Keep probabilities by kind of unit, and the table of one run of the GPT."""

from pathlib import Path

from npn.experiments.engine.recipe import Row
from npn.experiments.report.tables import markdown_table, percent

KINDS = {"query": "heads", "up": "MLP units", "branches": "branches"}  # last part of a group's name -> kind


def by_kind(histograms: dict[str, list[int]]) -> dict[str, list[int]]:
    """Add the histograms of all blocks up by kind of unit.

    Args:
        histograms: group name -> number of units per bin.

    Example:
        >>> by_kind({"blocks.0.mlp.up": [1, 2], "blocks.1.mlp.up": [0, 3], "branches": [0, 4]})
        {'heads': [0, 0], 'MLP units': [1, 5], 'branches': [0, 4]}
    """
    empty = [0] * len(next(iter(histograms.values())))
    found: dict[str, list[list[int]]] = {kind: [empty] for kind in KINDS.values()}  # a kind may have vanished
    for name, counts in histograms.items():
        found[KINDS[name.rpartition(".")[2]]].append(counts)
    return {kind: [sum(column) for column in zip(*part, strict=True)] for kind, part in found.items()}


def table(path: Path, result: Row) -> Path:
    """Write the size and the bits per byte after each stage in Markdown.

    Args:
        path: of the file.
        result: content of `result.json`.

    Returns:
        The path.
    """
    header = (
        "stage",
        "heads (MLP units) of each block",
        "parameters",
        "MACs per byte",
        "of the full net",
        "bits per byte",
    )
    rows = [
        (
            entry["stage"],
            entry["architecture"],
            f"{entry['params']:,}",
            f"{entry['macs'] / result['context'] / 1e6:.3f} M",
            percent(entry["macs"] / result["base"]["macs"], 1),
            f"{entry['bits_per_byte']:.3f}",
        )
        for entry in result["stages"]
    ]
    path.write_text(markdown_table(header, rows) + "\n")
    return path
