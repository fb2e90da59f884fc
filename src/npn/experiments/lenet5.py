"""The paper's second experiment (VI-B): LeNet5-Caffe on MNIST, shrunk from 20-50-500 or grown from 3-3-3."""

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

import npn
from npn.experiments import figures
from npn.experiments.mnist import mnist
from npn.experiments.options import Options, cost_term, stage_lengths
from npn.experiments.report import markdown_table, percent
from npn.experiments.runner import Experiment, Outcome, Recipe

FULL = (20, 50, 500)  # channels, channels, hidden units: where sparsify starts, and the most that expand may reach
SMALL = (3, 3, 3)
STAGES = {"sparsify": (4, 20, 16), "expand": (4, 30, 16)}
PAPER_STAGES = (100, 250, 150)
BUDGET = {"sparsify": 5320.0, "expand": 2304.0}  # the paper's Table I
BATCH_SIZE = 128
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 1e-2, 200
GATE_LEARNING_RATE = 3e-3
BUDGET_RATE = 0.002
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
    expand = mode == "expand"
    device = torch.device(options.device or "cpu")
    data = mnist(options.data).to(device)
    model = LeNet5(*(SMALL if expand else FULL)).to(device)
    plastic = npn.attach(
        model,
        data.train.x[:2],
        estimator=options.estimator,
        function=options.function,
        penalty=cost_term(options, rate=BUDGET_RATE),
    )
    weights = torch.optim.AdamW(plastic.weights(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    gates = torch.optim.Adam(plastic.logits(), lr=GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    pretrain, middle, finetune = stage_lengths(options.epochs, STAGES[mode])
    schedule = npn.Schedule(
        npn.Stage("pretrain", pretrain), npn.Stage("plastic", middle, k=options.k), npn.Stage("finetune", finetune)
    )
    batches = math.ceil(len(data.train) / BATCH_SIZE)

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Linear warm-up at the very beginning, half a cosine down in fine-tuning."""
        rate = LEARNING_RATE
        if stage.name == "finetune":
            rate *= 0.5 * (1 + math.cos(math.pi * (position + batch / batches) / stage.epochs))
        elif stage.name == "pretrain":
            rate *= min(1.0, (position * batches + batch + 1) / min(WARMUP, batches))
        for group in weights.param_groups:
            group["lr"] = rate

    return Recipe(
        plastic=plastic,
        schedule=schedule,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth(batches) if expand else None,
        compact_below=COMPACT_BELOW,
        step=step,
        snapshot=lambda model: {"filters": first_filters(model)},
    )


def _growth(batches: int) -> npn.Growth:
    return npn.Growth(
        units=0.2,
        limit={"conv1": FULL[0], "conv2": FULL[1], "fc1": FULL[2]},
        grace=batches // 4,
        patience=5,
    )


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Size by open units: `params` are weights without biases, as the paper counts; `params_with_biases` are all."""
    sizes = plastic.sizes()
    first, second, hidden = (sizes[name] for name in ("conv1", "conv2", "fc1"))
    weights = 25 * first + 25 * first * second + 16 * second * hidden + 10 * hidden
    total = weights + first + second + hidden + 10
    return {
        "params": weights,
        "params_with_biases": total,
        "architecture": f"{first}-{second}-{16 * second}-{hidden}",
    }


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


EXPERIMENT = Experiment("lenet5-mnist", defaults, build, draw, checkpoint_every=1)
