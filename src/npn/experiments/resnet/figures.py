"""Keep probabilities by section, and the table of one ResNet run."""

from pathlib import Path

from npn.experiments.engine.recipe import Row
from npn.experiments.report.tables import markdown_table, percent
from npn.experiments.resnet.model import WIDTHS
from npn.experiments.resnet.sizes import LAST


def by_section(histograms: dict[str, list[int]], per: int) -> dict[str, list[int]]:
    """Add the histograms of the blocks' inner channels up by section; the others stay apart.

    Args:
        histograms: group name -> number of units per bin.
        per: blocks per section.
    """
    empty = [0] * len(next(iter(histograms.values())))
    found = {f"blocks of section {i + 1}": [empty] for i in range(len(WIDTHS))}  # a section may have lost all blocks
    for name, counts in histograms.items():
        if name.endswith(".branch.conv1"):
            found[f"blocks of section {int(name.split('.')[1]) // per + 1}"].append(counts)
        else:
            other = {"branches": "branches", f"{LAST}.columns": "inputs of the last layer"}.get(name, "streams")
            found.setdefault(other, []).append(counts)
    return {name: [sum(column) for column in zip(*part, strict=True)] for name, part in found.items()}


def table(path: Path, result: Row) -> Path:
    """Write sizes and accuracies beside both bases in Markdown (the paper's Table II); reductions are in percent.

    Args:
        path: of the file.
        result: content of `result.json`.

    Returns:
        The path.
    """
    first = result["base"]["zero_padding"]
    names = {"zero_padding": "base, zero-padding shortcuts", "projection": "base, projection shortcuts"}
    full = (result["depth"] - 2) // 2
    sizes = [(names[name], "", {**entry, "blocks": full}, "") for name, entry in result["base"].items()]
    sizes += [(e["stage"], e["architecture"], e, percent(e["accuracy"])) for e in result["stages"]]
    header = (
        *("stage", "stream channels (in blocks)", "blocks", "parameters", "reduction", "MACs", "reduction"),
        "test accuracy",
    )
    rows = [
        (
            stage,
            architecture,
            str(size.get("blocks", full)),
            f"{size['params']:,}",
            percent(1 - size["params"] / first["params"], 1),
            f"{size['macs'] / 1e6:.2f} M",
            percent(1 - size["macs"] / first["macs"], 1),
            accuracy,
        )
        for stage, architecture, size, accuracy in sizes
    ]
    path.write_text(markdown_table(header, rows) + "\n")
    return path
