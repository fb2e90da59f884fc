"""The paper's second experiment (VI-B): LeNet5-Caffe on MNIST, shrunk from 20-50-500 or grown from 3-3-3."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

import npn
from npn.experiments.data.mnist import mnist
from npn.experiments.engine.options import Options, cost_term, in_full, stage_lengths
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.report import figures
from npn.experiments.report.tables import markdown_table, percent

FULL = (20, 50, 500)  # channels, channels, hidden units: where sparsify starts, and the most that expand may reach
SMALL = (3, 3, 3)
PLAIN = (8, 10, 18)  # in this proportion are the plain nets that are trained from scratch for comparison
STAGES = {"sparsify": (3, 10, 50), "expand": (3, 14, 46), "dense": (20,), "scratch": (63,)}
PAPER_STAGES = (100, 250, 150)
BUDGET = {"sparsify": 5320.0, "expand": 2304.0, "scratch": 5320.0}  # the paper's Table I
BATCH_SIZE = 64
LEARNING_RATE, WARMUP = 3.5e-3, 400
WEIGHT_DECAY, DECAYED = 0.2, 5320.0  # in full from so many weights on; smaller networks underfit with that much
GATE_LEARNING_RATE = 4e-3
PRICE: dict[str, Any] = {
    "rate": 8e-4,
    "gain": 1.5,
    "scale": 5e-3,
}  # a faster one closes whole layers
GROWTH = 0.4  # the same share of every layer, or the layers that were widened less get pruned away
OVERSHOOT = 2.0  # growth goes on to so many times the budget, for the gates to choose from
COMPACT_BELOW = 1e-2


class LeNet5(nn.Module):
    """Conv 5x5 - pool - conv 5x5 - pool - linear - linear, ReLU between, on (B, 1, 28, 28)."""

    def __init__(self, first: int = FULL[0], second: int = FULL[1], hidden: int = FULL[2]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 5)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(16 * second, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def defaults(options: Options) -> Options:
    """The settings of the committed results."""
    mode = options.mode or "sparsify"
    return Options(
        mode=mode,
        seed=0,
        k=7.0,
        estimator="reinmax",
        function="sigmoid",
        budget=BUDGET.get(mode) if options.penalty is None else None,
        device="cpu",
    )


def build(options: Options) -> Recipe:
    """Data, model, gates, optimizers and schedule of one run."""
    mode = options.checked_mode(STAGES)
    assert options.k is not None and options.estimator and options.function  # defaults() has filled them in
    device = torch.device(options.device or "cpu")
    budget = in_full(options.budget, count_weights(*FULL[:2], 16 * FULL[1], FULL[2]))
    data = mnist(options.data).to(device)
    widths = {"expand": SMALL, "scratch": plain_widths(budget or math.inf)}.get(mode, FULL)
    model = LeNet5(*widths).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half the time on a CPU
    plastic = npn.attach(
        model,
        data.train.x[:2],
        estimator=options.estimator,
        function=options.function,
        penalty=cost_term(replace(options, budget=budget if mode != "scratch" else None), **PRICE),
        columns="fc1",
    )
    decay = WEIGHT_DECAY * min(1.0, (budget or math.inf) / DECAYED)
    weights = torch.optim.AdamW(plastic.weights(), lr=LEARNING_RATE, weight_decay=decay, fused=True)
    gates = torch.optim.Adam(plastic.logits(), lr=GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    lengths = stage_lengths(options.epochs, STAGES[mode])
    names = ("pretrain", "plastic", "finetune") if len(lengths) == 3 else ("train",)
    stages = [
        npn.Stage(name, length, k=options.k if name == "plastic" else math.inf)
        for name, length in zip(names, lengths, strict=True)
    ]
    batches = math.ceil(len(data.train) / BATCH_SIZE)

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Linear warm-up at the very beginning, half a cosine down in the last stage."""
        rate, done = LEARNING_RATE, position * batches + batch
        if stage.name == names[0]:
            rate *= min(1.0, (done + 1) / min(WARMUP, batches))
        if stage.name == names[-1]:
            rate *= 0.5 * (1 + math.cos(math.pi * done / (batches * stage.epochs)))
        for group in weights.param_groups:
            group["lr"] = rate

    return Recipe(
        plastic=plastic,
        schedule=npn.Schedule(*stages),
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth(batches, budget) if mode == "expand" else None,
        grow_first=True,
        compact_below=COMPACT_BELOW,
        step=step,
        snapshot=lambda model: {"filters": first_filters(model)},
    )


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """A network to load a run's model into, and an example batch."""
    return LeNet5(), torch.zeros(2, 1, 28, 28)


def _growth(batches: int, budget: float | None) -> npn.Growth:
    return npn.Growth(
        units=GROWTH,
        max_params=int(OVERSHOOT * budget) if budget else None,
        limit={"conv1": FULL[0], "conv2": FULL[1], "fc1": FULL[2]},
        grace=batches // 4,
        patience=5,
    )


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Size by open units: `params` are weights without biases, as the paper counts; `params_with_biases` are all."""
    sizes = plastic.sizes()
    first, second, features, hidden = (sizes[name] for name in ("conv1", "conv2", "fc1.columns", "fc1"))
    weights = count_weights(first, second, features, hidden)
    return {
        "params": weights,
        "params_with_biases": weights + first + second + hidden + 10,
        "architecture": f"{first}-{second}-{features}-{hidden}",
    }


def count_weights(first: int, second: int, features: int, hidden: int) -> int:
    """Weights of the four layers, without biases.

    Example:
        >>> count_weights(20, 50, 800, 500)
        430500
    """
    return 25 * first + 25 * first * second + features * hidden + 10 * hidden


def plain_widths(budget: float) -> tuple[int, int, int]:
    """Widths of the largest plain net in the proportions of `PLAIN` with at most so many weights.

    Example:
        >>> plain_widths(5320)
        (8, 10, 18)
    """
    scales = (scale / 100 for scale in range(400, 0, -1))
    widths = ([max(1, round(width * scale)) for width in PLAIN] for scale in scales)
    return next((a, b, c) for a, b, c in widths if count_weights(a, b, 16 * b, c) <= budget or (a, b, c) == (1, 1, 1))


def first_filters(model: nn.Module) -> Tensor:
    """The kernels of the first convolution, (channels, 5, 5)."""
    return model.get_parameter("conv1.weight").detach()[:, 0].cpu().clone()


def draw(path: Path, outcome: Outcome) -> list[Path]:
    """Learning curves (the paper's Fig. 3), filters before and after, and Table I."""
    result = outcome.result
    title = f"LeNet-5 on MNIST, {result['mode']}, seed {result['seed']}"
    drawn = [
        figures.learning_curves(path / "curves.png", outcome.rows, title),
        figures.keep_probabilities(path / "keep_probability.png", outcome.rows, f"{title}: keep probabilities"),
        filters(path / "filters.png", outcome),
        table(path / "table.md", outcome),
    ]
    return [file for file in drawn if file is not None]


@figures.styled
def filters(path: Path, outcome: Outcome) -> Path:
    """First-layer filters at the end of each stage."""
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
    """Stage, architecture, parameters, accuracy, in Markdown (the paper's Table I)."""
    rows = [
        (e["stage"], e["architecture"], f"{e['params']:,}", percent(e["accuracy"])) for e in outcome.result["stages"]
    ]
    path.write_text(markdown_table(("stage", "architecture", "parameters", "test accuracy"), rows) + "\n")
    return path


EXPERIMENT = Experiment("lenet5-mnist", defaults, build, draw, sample, checkpoint_every=1)
