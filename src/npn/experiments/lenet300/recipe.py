"""LeNet-300-100 on MNIST: one gate for each of its 266,200 weights."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn.experiments.data.augment import shift_turn_scale
from npn.experiments.data.mnist import mnist
from npn.experiments.engine.building import attach, cost_term, half_cosine, in_full, path_steps, schedule, set_rate
from npn.experiments.engine.moving import animate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.engine.single_weights import hold_units_open, measure
from npn.experiments.lenet300.model import WEIGHTS, WIDTHS, LeNet300
from npn.experiments.lenet300.options import LeNet300Options
from npn.experiments.report import figures

STAGES = {"sparsify": (5, 40, 40), "dense": (50,), "scratch": (85,)}
BUDGET = 4000.0
BATCH_SIZE = 100
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
MORE_DECAY = 0.3  # by validation images, for 4,000 single weights: they overfit where images are not augmented
GATE_LEARNING_RATE = 4e-3
PATH = 0.8  # share of the plastic stage in which the bound leads to the budget
PRICE: dict[str, Any] = {"rate": 4e-3, "gain": 3.0, "scale": 1e-3}
COMPACT_BELOW = 1e-2


def defaults(options: Options) -> LeNet300Options:
    """Return the settings of a run.

    Args:
        options: settings of the user.
    """
    mode = options.mode or "sparsify"
    budget = BUDGET if mode in ("sparsify", "scratch") and options.penalty is None else None
    augment = isinstance(options, LeNet300Options) and bool(options.augment)
    return LeNet300Options(
        **STANDARD,
        mode=mode,
        budget=budget,
        learning_rate=LEARNING_RATE,
        weight_decay=MORE_DECAY if mode == "sparsify" and not augment else WEIGHT_DECAY,
        augment=augment,
        units=False,
    )


def build(options: Options) -> Recipe:
    """Make data, model, gates, optimizers and schedule of one run.

    Args:
        options: complete settings.
    """
    mode = options.checked_mode(STAGES)
    assert isinstance(options, LeNet300Options) and options.learning_rate and options.weight_decay is not None
    device, rate = torch.device(options.device or "cpu"), options.learning_rate
    data = mnist(options.data).to(device)
    budget = in_full(options.budget, WEIGHTS)
    widths = [plain_width(budget or WEIGHTS)] * 2 if mode == "scratch" else WIDTHS
    model = LeNet300(*widths).to(device)
    stages, batches = schedule(options, STAGES[mode]), math.ceil(len(data.train) / BATCH_SIZE)
    steps = path_steps(stages, PATH, batches)
    penalty = cost_term(options.penalty, None if mode == "scratch" else budget, "weights", steps=steps, **PRICE)
    plastic = attach(model, data.train.x[:2], options, penalty, unstructured="*")
    if not options.units:
        hold_units_open(plastic)
    weights = torch.optim.AdamW(plastic.weights(), lr=rate, weight_decay=options.weight_decay, fused=True)
    gates = torch.optim.Adam([p for p in plastic.logits() if p.requires_grad], lr=GATE_LEARNING_RATE, fused=True)
    plastic.track(weights, gates)
    last = stages.stages[-1].name

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """The learning rate falls along half a cosine in the last stage."""
        done = (position * batches + batch) / (batches * stage.epochs)
        set_rate(weights, rate * (half_cosine(done) if stage.name == last else 1.0))

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        compact_below=COMPACT_BELOW,
        step=step,
        augment=shift_turn_scale if options.augment else None,
    )


def plain_width(weights: float) -> int:
    """Find the width of the largest net with two hidden layers of equal width.

    Args:
        weights: the most that it may have.

    Example:
        >>> plain_width(4000)
        5
    """
    return next((width for width in range(WIDTHS[0], 1, -1) if width * (784 + width + 10) <= weights), 1)


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings.
    """
    return LeNet300(), torch.zeros(2, 1, 28, 28)


def draw(path: Path, outcome: Outcome) -> None:
    """Draw learning curves.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    title = f"LeNet-300-100 on MNIST, {outcome.result['mode']}, seed {outcome.result['seed']}"
    figures.learning_curves(path / "curves.png", outcome.rows, title)


EXPERIMENT = Experiment("lenet300-mnist", defaults, build, draw, sample, options=LeNet300Options, animate=animate)
