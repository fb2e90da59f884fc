"""Published results of pruned ResNet-56 on CIFAR-10, as tables for orientation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from npn.experiments.report.tables import markdown_table


class Published(NamedTuple):
    """A result of others.

    Attributes:
        method: its name.
        base: test accuracy of the full net, in percent.
        accuracy: test accuracy of the pruned net, in percent.
        speed_up: MACs of the full net over those of the pruned one.
    """

    method: str
    base: float
    accuracy: float
    speed_up: float


# as the benchmarks of Torch-Pruning (github.com/VainF/Torch-Pruning) list them
RESNET56 = (
    Published("Polar", 93.80, 93.83, 1.88),
    Published("channel pruning (CP)", 92.80, 91.80, 2.00),
    Published("AMC", 92.80, 91.90, 2.00),
    Published("HRank", 93.26, 92.17, 2.00),
    Published("soft filter pruning (SFP)", 93.59, 93.36, 2.11),
    Published("ResRep", 93.71, 93.71, 2.12),
    Published("Torch-Pruning: L1 norm of groups", 93.53, 92.93, 2.12),
    Published("Torch-Pruning: network slimming", 93.53, 93.29, 2.12),
    Published("Torch-Pruning: group norm", 93.53, 93.46, 2.11),
    Published("DepGraph, sparse training", 93.53, 93.77, 2.13),
    Published("DepGraph, sparse training", 93.53, 93.64, 2.57),
)


def published_lines(summary: Mapping[str, Any]) -> list[str]:
    """Write the table, for ResNet-56 on CIFAR-10; nothing for others.

    Args:
        summary: content of a bench's JSON file.
    """
    if (summary["depth"], summary["dataset"]) != (56, "cifar10"):
        return []
    rows = [
        (each.method, f"{each.base:.2f}%", f"{each.accuracy:.2f}%", f"{each.accuracy - each.base:+.2f}",
         f"{each.speed_up:.2f}", f"{100 / each.speed_up:.0f}%")
        for each in RESNET56
    ]  # fmt: skip
    return [
        "## Published, for orientation",
        "",
        markdown_table(("method", "full net", "pruned", "difference", "full MACs over pruned", "of the MACs"), rows),
        "",
        "As listed by the benchmarks of Torch-Pruning (github.com/VainF/Torch-Pruning). DepGraph's full net was "
        "trained for 200 epochs, and its pruned nets for 100 with a sparsity term and 100 after the cut, on all "
        "50,000 images; the logs there show the best epoch on test data. The networks above had the epochs of the "
        "first table in all, on 45,000 images, and show the last one.",
        "",
    ]
