"""The paper's first experiment (VI-A): two moons, a network of 100 features and 80 hidden units, shrunk or grown."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn.experiments.data.moons import moons
from npn.experiments.engine import paper
from npn.experiments.engine.building import attach, cost_term, half_cosine, in_full, path_steps, schedule, set_rate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.moons.animation import animate
from npn.experiments.moons.figures import boundaries, confidence
from npn.experiments.moons.model import FULL, MoonsNet, sizes
from npn.experiments.moons.options import MoonsOptions
from npn.experiments.report import figures

SMALL = (3, 3)  # features and hidden units that expand starts with
STAGES = {"sparsify": (100, 1000, 300), "expand": (100, 1000, 300)}  # pre-train, plastic, fine-tune: epochs
BUDGET = 45.0  # parameters with biases and projection: enough for 5-4-2, with 28 weights
PATH = {"sparsify": 0.9, "expand": 0.5}  # share of the plastic stage in which the bound leads to the budget
PRICE: dict[str, Any] = {"rate": 0.02, "gain": 3.0, "scale": 1e-3}
SETTLE = 0.6  # share of the plastic stage, at its end, without growth
OVERSHOOT = 20.0  # growth ends at so many times the budget, so that the gates have a choice
BATCH_SIZE = 100
LEARNING_RATE = 5e-3
GATE_LEARNING_RATE = 1e-2
GATE_BETAS = (0.9, 0.99)
COMPACT_BELOW = 1e-2
# as in the authors' code: (0.35, 14) / 8160 for each weight that reads a feature, 80 of them, or a hidden unit, 2
PAPER = paper.Paper(
    stages={"sparsify": (500, 500, 1000), "expand": (100, 900, 1000)},
    prices={"projection*": 0.35 * FULL[1] / 8160, "hidden*": 14.0 * 2 / 8160},
    limit={"projection*": FULL[0], "hidden*": FULL[1]},
    milestone=0.0,
)


def defaults(options: Options) -> MoonsOptions:
    """Return the settings of the committed results.

    Args:
        options: settings of the user.
    """
    if paper.checked(options, getattr(options, "preset", None)):
        return MoonsOptions(**paper.standard(options))
    return MoonsOptions(**STANDARD, mode="sparsify", budget=BUDGET if options.penalty is None else None)


def build(options: Options) -> Recipe:
    """Make data, model, gates, optimizers and schedule of one run.

    Args:
        options: complete settings.
    """
    mode = options.checked_mode(STAGES)
    assert isinstance(options, MoonsOptions) and options.seed is not None  # the defaults are filled in
    device = torch.device(options.device or "cpu")
    data = moons(options.seed).to(device)
    model = MoonsNet(*(SMALL if mode == "expand" else FULL)).to(device)
    if paper.checked(options, options.preset):
        return paper.recipe(
            PAPER, model, data, options, measure, lambda model: {"confidence": confidence(model, device)}
        )
    budget = in_full(options.budget, sizes(*FULL)["params_total"])
    stages = schedule(options, STAGES[mode])
    steps = path_steps(stages, PATH[mode], math.ceil(len(data.train) / BATCH_SIZE))
    penalty = cost_term(options.penalty, budget, steps=steps, **PRICE)
    plastic = attach(model, data.train.x[:2], options, penalty)
    weights = torch.optim.Adam(plastic.weights(), lr=LEARNING_RATE)
    gates = torch.optim.Adam(plastic.logits(), lr=GATE_LEARNING_RATE, betas=GATE_BETAS)
    plastic.track(weights, gates)

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """In the last stage, the learning rate falls along half a cosine."""
        done = position / stage.epochs if stage.name == "finetune" else 0.0
        set_rate(weights, LEARNING_RATE * half_cosine(done))

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth(budget, options) if mode == "expand" else None,
        grow_first=True,
        settle=round(SETTLE * stages.stages[1].epochs),
        compact_below=COMPACT_BELOW,
        start_from=options.start_from,
        step=step,
        snapshot=lambda model: {"confidence": confidence(model, device)},
    )


def _growth(budget: float | None, options: Options) -> npn.Growth:
    """Ten units at a time: one or two more hardly change the validation loss of a net of three."""
    return npn.Growth(
        init=options.growth_init or "zero",
        units=10,
        patience=200,
        grace=100,
        max_params=int(OVERSHOOT * budget) if budget else None,
        limit={"projection*": FULL[0], "hidden*": FULL[1]},
    )


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Report the size by open units, see `sizes`.

    Args:
        plastic: the attached model.
    """
    features, hidden = (
        next(size for name, size in plastic.sizes().items() if name.startswith(part))
        for part in ("projection", "hidden")
    )
    return {**sizes(features, hidden), "architecture": f"{features}-{hidden}-2"}


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings.
    """
    return MoonsNet(), torch.zeros(2, 2)


def draw(path: Path, outcome: Outcome) -> None:
    """Draw all figures of one run.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    result, rows = outcome.result, outcome.rows
    title = f"two moons, {result['mode']}, seed {result['seed']}"
    boundaries(path / "boundary.png", [outcome])
    figures.learning_curves(path / "curves.png", rows, title)
    figures.keep_probabilities(path / "keep_probability.png", rows, f"{title}: keep probabilities, plastic stage")
    figures.gate_functions(path / "gates.png")


EXPERIMENT = Experiment(
    "moons", defaults, build, draw, sample, checkpoint_every=20, threads=1, options=MoonsOptions, animate=animate
)
