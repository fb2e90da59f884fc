"""Filters and table of one LeNet-5 run."""

from pathlib import Path

from matplotlib.axes import Axes
from torch import Tensor, nn

from npn.experiments.engine.recipe import Outcome
from npn.experiments.report import figures
from npn.experiments.report.tables import markdown_table, percent


def first_filters(model: nn.Module) -> Tensor:
    """Copy the kernels of the first convolution.

    Args:
        model: a LeNet-5.

    Returns:
        (channels, 5, 5), on the CPU.
    """
    return model.get_parameter("conv1.weight").detach()[:, 0].cpu().clone()


@figures.styled
def filters(path: Path, outcome: Outcome) -> Path:
    """Draw the filters of the first layer at the end of each stage.

    Args:
        path: of the PNG.
        outcome: of the run.

    Returns:
        The path.
    """
    stages = list(outcome.snapshots)
    widest = max(len(snapshot["filters"]) for snapshot in outcome.snapshots.values())
    figure, axes = figures.canvas(len(stages), widest, 0.5 * widest + 1, 0.55 * len(stages) + 0.3)
    for line, stage in zip(axes, stages, strict=True):
        kernels = outcome.snapshots[stage]["filters"]
        for axis, kernel in zip(line, [*kernels, *[None] * (widest - len(kernels))], strict=True):
            _filter(axis, kernel)
        line[0].set_ylabel(stage, rotation=0, ha="right", va="center", fontsize=8)
    return figures.save(figure, path)


def _filter(axis: Axes, kernel: Tensor | None) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if kernel is not None:
        bound = float(kernel.abs().max()) or 1.0
        axis.imshow(kernel, cmap="RdBu_r", vmin=-bound, vmax=bound)


def table(path: Path, outcome: Outcome) -> Path:
    """Write stage, architecture, parameters and accuracy in Markdown (the paper's Table I).

    Args:
        path: of the file.
        outcome: of the run.

    Returns:
        The path.
    """
    rows = [
        (e["stage"], e["architecture"], f"{e['params']:,}", percent(e["accuracy"])) for e in outcome.result["stages"]
    ]
    path.write_text(markdown_table(("stage", "architecture", "parameters", "test accuracy"), rows) + "\n")
    return path
