"""The paper's first experiment (VI-A): two moons, a network of 100 features and 80 hidden units, shrunk or grown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import npn
from npn.experiments.data.splits import Split, moons
from npn.experiments.engine.options import Options, cost_term, in_full, stage_lengths
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.report import figures
from npn.experiments.report.tables import percent
from npn.tracing.single import evaluating

FULL = (100, 80)  # features and hidden units that sparsify starts with, and the most that expand may reach
SMALL = (3, 3)  # what expand starts with
STAGES = {"sparsify": (100, 1000, 300), "expand": (100, 1000, 300)}  # pre-train, plastic, fine-tune: epochs
SETTLE = 0.4  # share of the plastic stage, at its end, in which nothing grows
BATCH_SIZE = 100
LEARNING_RATE = 1e-2
GATE_LEARNING_RATE = 1e-2
GATE_BETAS = (0.9, 0.99)
COMPACT_BELOW = 1e-2
GRID = 161  # points per side of the picture of the decision boundary
EXTENT = (-1.6, 2.6, -1.15, 1.65)  # the part of the plane in it: left, right, bottom, top


class MoonsNet(nn.Module):
    """A fixed random projection of the plane to `features`, then Linear-ReLU-Linear.

    The projection is data preparation in the paper: it is not trained, and its weights are not counted.
    """

    def __init__(self, features: int = FULL[0], hidden: int = FULL[1]) -> None:
        super().__init__()
        self.projection = nn.Linear(2, features, bias=False).requires_grad_(False)
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2) of points (B, 2)."""
        logits: Tensor = self.output(torch.relu(self.hidden(self.projection(x))))
        return logits


def defaults(options: Options) -> Options:
    """The settings of the committed results."""
    return Options(
        mode="sparsify",
        seed=0,
        k=7.0,
        estimator="reinmax",
        function="sigmoid",
        penalty=6e-4 if options.budget is None else None,
        device="cpu",
    )


def build(options: Options) -> Recipe:
    """Data, model, gates, optimizers and schedule of one run."""
    mode = options.checked_mode(STAGES)
    assert options.seed is not None and options.k is not None  # defaults() has filled them in
    assert options.estimator is not None and options.function is not None
    expand = mode == "expand"
    device = torch.device(options.device or "cpu")
    data = moons(options.seed).to(device)
    model = MoonsNet(*(SMALL if expand else FULL)).to(device)
    plastic = npn.attach(
        model,
        data.train.x[:2],
        estimator=options.estimator,
        function=options.function,
        penalty=cost_term(replace(options, budget=in_full(options.budget, sizes(*FULL)["params_total"]))),
    )
    weights = torch.optim.Adam(plastic.weights(), lr=LEARNING_RATE)
    gates = torch.optim.Adam(plastic.logits(), lr=GATE_LEARNING_RATE, betas=GATE_BETAS)
    plastic.track(weights, gates)
    pretrain, middle, finetune = stage_lengths(options.epochs, STAGES[mode])
    schedule = npn.Schedule(
        npn.Stage("pretrain", pretrain), npn.Stage("plastic", middle, k=options.k), npn.Stage("finetune", finetune)
    )

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Fine-tuning ends on small steps: half a cosine."""
        done = position / stage.epochs if stage.name == "finetune" else 0.0
        for group in weights.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1.0 + float(np.cos(np.pi * done)))

    return Recipe(
        plastic=plastic,
        schedule=schedule,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth() if expand else None,
        settle=round(SETTLE * middle),
        compact_below=COMPACT_BELOW,
        step=step,
        snapshot=lambda model: {"confidence": confidence(model, device)},
    )


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """A network to load a run's model into, and an example batch."""
    return MoonsNet(), torch.zeros(2, 2)


def _growth() -> npn.Growth:
    """Ten units at a time: one or two more than a net of three tell the validation loss too little."""
    return npn.Growth(units=10, patience=200, grace=400, limit={"projection*": FULL[0], "hidden*": FULL[1]})


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Size by open units, see `sizes`."""
    features, hidden = (
        next(size for name, size in plastic.sizes().items() if name.startswith(part))
        for part in ("projection", "hidden")
    )
    return {**sizes(features, hidden), "architecture": f"{features}-{hidden}-2"}


def sizes(features: int, hidden: int) -> dict[str, int]:
    """Size of a network of these widths.

    `params` are the weights of the two trained layers without biases, as the paper counts; `params_total` are all of
    the network's, projection and biases included, as penalty and budget count.

    Example:
        >>> sizes(100, 80)
        {'params': 8160, 'params_with_biases': 8242, 'params_total': 8442}
    """
    weights = features * hidden + hidden * 2
    trained = weights + hidden + 2
    return {"params": weights, "params_with_biases": trained, "params_total": trained + 2 * features}


def confidence(model: nn.Module, device: torch.device) -> Tensor:
    """(GRID, GRID) probability of class 1 on a grid over EXTENT, rows from bottom to top."""
    left, right, bottom, top = EXTENT
    x, y = torch.linspace(left, right, GRID), torch.linspace(bottom, top, GRID)
    points = torch.cartesian_prod(y, x).flip(1).to(device)
    with evaluating(model), torch.no_grad():
        probability = model(points).softmax(1)[:, 1]
    shaped: Tensor = probability.reshape(GRID, GRID).cpu()
    return shaped


def draw(path: Path, outcome: Outcome) -> list[Path]:
    """All pictures of one run."""
    result, rows = outcome.result, outcome.rows
    title = f"two moons, {result['mode']}, seed {result['seed']}"
    drawn = [
        boundaries(path / "boundary.png", [outcome]),
        figures.learning_curves(path / "curves.png", rows, title),
        figures.keep_probabilities(path / "keep_probability.png", rows, f"{title}: keep probabilities, plastic stage"),
        figures.gate_functions(path / "gates.png"),
    ]
    return [file for file in drawn if file is not None]


@figures.styled
def boundaries(path: Path, outcomes: Sequence[Outcome]) -> Path:
    """Decision boundary and contours of confidence at the end of each stage, one row per run (the paper's Fig. 2)."""
    columns = len(outcomes[0].snapshots)
    figure, axes = figures.canvas(
        len(outcomes), columns, 3.3 * columns, 2.2 * len(outcomes) + 0.35, sharex=True, sharey=True
    )
    picture: Any = None
    for line, outcome in zip(axes, outcomes, strict=True):
        test = moons(outcome.result["seed"]).test
        for axis, entry in zip(line, outcome.result["stages"], strict=True):
            picture = _boundary(axis, outcome.snapshots[entry["stage"]]["confidence"], test)
            size = f"{entry['architecture']}, {entry['params']:,} parameters"
            axis.set_title(f"{entry['stage']}: {size}, {percent(entry['accuracy'], 1)}", fontsize=8.5)
        line[0].set_ylabel(outcome.result["mode"], fontsize=10)
    figure.colorbar(picture, ax=axes, shrink=0.85, pad=0.01, label="probability of class 1", ticks=np.linspace(0, 1, 6))
    return figures.save(figure, path)


def _boundary(axis: Axes, probability: Tensor, test: Split) -> Any:
    left, right, bottom, top = EXTENT
    x, y = np.linspace(left, right, GRID), np.linspace(bottom, top, GRID)
    levels = np.linspace(0.0, 1.0, 11)
    filled = axis.contourf(x, y, probability, levels=levels, cmap="RdBu_r", alpha=0.75)
    axis.contour(x, y, probability, levels=levels[1:-1], colors="0.35", linewidths=0.35)
    axis.contour(x, y, probability, levels=[0.5], colors="black", linewidths=1.6)
    for label, colour in ((0, "#08306b"), (1, "#67000d")):
        points = test.x[test.y == label]
        axis.scatter(points[:, 0], points[:, 1], s=3.5, color=colour, linewidths=0)
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    return filled


EXPERIMENT = Experiment("moons", defaults, build, draw, sample, checkpoint_every=20, threads=1)
