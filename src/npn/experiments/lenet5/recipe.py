"""The paper's second experiment (VI-B): LeNet5-Caffe on MNIST, shrunk from 20-50-500 or grown from 3-3-3."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.augment import shift_turn_scale
from npn.experiments.data.mnist import mnist
from npn.experiments.engine import paper, single_weights
from npn.experiments.engine.building import (
    attach,
    channels_last,
    check_overshoot,
    cost_term,
    half_cosine,
    in_full,
    path_steps,
    redrawn,
    schedule,
    set_rate,
)
from npn.experiments.engine.moving import animate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.engine.rundir import finished_run
from npn.experiments.engine.teaching import taught, untaught
from npn.experiments.lenet5.figures import filters, first_filters, table
from npn.experiments.lenet5.model import FULL, PLAIN, LeNet5, count_weights
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.report import figures
from npn.penalty import CostKind

FULL_WEIGHTS = count_weights(*FULL[:2], 16 * FULL[1], FULL[2])
SMALL = (3, 3, 3)  # widths that expand starts with
STAGES = {"sparsify": (3, 10, 50), "expand": (3, 14, 46), "dense": (20,), "scratch": (63,)}
BUDGET = {"sparsify": 5320.0, "expand": 2304.0, "scratch": 5320.0}  # the paper's Table I
SINGLE_WEIGHTS, SINGLE_STAGES = 1500.0, (3, 40, 40)  # budget and epochs where single weights have gates
BATCH_SIZE = 64
LEARNING_RATE, WARMUP = 7e-3, 400
WEIGHT_DECAY, DECAYED = 0.1, 5320.0  # in full from so many weights on; smaller networks underfit with that much
GATE_LEARNING_RATE = 4e-3
PATH = {"sparsify": 0.8, "expand": 0.5}  # share of the plastic stage in which the bound leads to the budget
SETTLE = 0.5  # share of the plastic stage, at its end, without growth
PRICE: dict[str, Any] = {"rate": 4e-3, "gain": 3.0, "scale": 1e-3}
GROWTH = 0.4  # the same share of every layer; layers that grow less than others are pruned away
OVERSHOOT = 2.0  # growth ends at so many times the budget, so that the gates have a choice
COMPACT_BELOW = 1e-2


def defaults(options: Options) -> LeNetOptions:
    """Return the settings of the committed results.

    Args:
        options: settings of the user.
    """
    mode = options.mode or "sparsify"
    if paper.checked(options, getattr(options, "preset", None)):
        own = paper.standard(options)
        return LeNetOptions(**own, learning_rate=paper.LEARNING_RATE, weight_decay=0.0, augment=False, weights=False)
    mine = options if isinstance(options, LeNetOptions) else LeNetOptions()
    single = bool(mine.weights) and mode == "sparsify"
    standard = SINGLE_WEIGHTS if single else BUDGET.get(mode)
    budget = standard if options.penalty is None else None
    size = in_full(options.budget or budget, FULL_WEIGHTS)
    overfits = single and not mine.augment  # single weights do, however few there are
    return LeNetOptions(
        **STANDARD,
        mode=mode,
        budget=budget,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY * (1.0 if overfits else min(1.0, (size or math.inf) / DECAYED)),
        augment=False,
        weights=False,
        overshoot=OVERSHOOT if mode == "expand" else None,
    )


def build(options: Options) -> Recipe:
    """Make data, model, gates, optimizers and schedule of one run.

    Args:
        options: complete settings.
    """
    mode = options.checked_mode(STAGES)
    assert isinstance(options, LeNetOptions) and options.learning_rate and options.weight_decay is not None
    if options.like and mode != "scratch":
        raise ConfigurationError(f'like names a run whose widths "scratch" trains anew, got it for mode {mode!r}')
    check_overshoot(options.overshoot, mode)
    if options.weights and mode not in ("sparsify", "dense"):
        raise ConfigurationError(f"single weights are for the modes 'sparsify' and 'dense', got {mode!r}")
    device = torch.device(options.device or "cpu")
    data = mnist(options.data).to(device)
    if paper.checked(options, options.preset):
        start = LeNet5(*(SMALL if mode == "expand" else FULL)).to(device)
        channels_last(start)
        theirs = as_in_the_paper(len(data.train))
        return paper.recipe(theirs, start, data, options, measure, _snapshot, rate=options.learning_rate, columns="fc1")
    budget = in_full(options.budget, FULL_WEIGHTS)
    widths = {"expand": SMALL, "scratch": plain_widths(budget or math.inf)}.get(mode, FULL)
    model = _like(options.like) if options.like else LeNet5(*widths)
    model.to(device)
    channels_last(model)
    lengths = SINGLE_STAGES if options.weights and mode == "sparsify" else STAGES[mode]
    stages, batches = schedule(options, lengths), math.ceil(len(data.train) / BATCH_SIZE)
    steps = path_steps(stages, PATH.get(mode, 1.0), batches)
    kind: CostKind = "weights" if options.weights else "params"
    penalty = cost_term(options.penalty, None if mode == "scratch" else budget, kind, steps=steps, **PRICE)
    gated = {"unstructured": "*"} if options.weights else {"columns": None if options.like else "fc1"}
    plastic = attach(model, data.train.x[:2], options, penalty, **gated)
    if options.weights:
        single_weights.hold_units_open(plastic)
    weights = torch.optim.AdamW(
        plastic.weights(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    highest = options.learning_rate
    gates = torch.optim.Adam([p for p in plastic.logits() if p.requires_grad], lr=GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    first, last = stages.stages[0].name, stages.stages[-1].name

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """The learning rate rises linearly at the start, and falls along half a cosine in the last stage."""
        rate, done = highest, position * batches + batch
        if stage.name == first:
            rate *= min(1.0, (done + 1) / min(WARMUP, batches))
        if stage.name == last:
            rate *= half_cosine(done, batches * stage.epochs)
        set_rate(weights, rate)

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=single_weights.measure if options.weights else measure,
        growth=_growth(batches, budget, options) if mode == "expand" else None,
        grow_first=True,
        settle=round(SETTLE * stages.stages[1].epochs) if steps else 0,
        compact_below=COMPACT_BELOW,
        start_from=options.start_from,
        step=step,
        snapshot=_snapshot,
        augment=shift_turn_scale if options.augment else None,
        loss=taught(_trained(options.teacher).to(device)) if options.teacher else untaught,
    )


def as_in_the_paper(examples: int) -> paper.Paper:
    """Return the paper's stages and prices.

    The prices of the layers, (10, 0.5, 0.1, 10) / N, are per weight. A unit pays for the weights of its own in the full
    network, as the authors' code counts them: a channel for its kernel, an input or a hidden unit of a linear layer for
    the weights that read it.

    Args:
        examples: N, training images.
    """
    first, second, hidden = FULL
    weights = {"conv1": 25, "conv2": 25 * first, "fc1.columns": hidden, "fc1": 10}
    prices = {"conv1": 10.0, "conv2": 0.5, "fc1.columns": 0.1, "fc1": 10.0}
    return paper.Paper(
        stages=dict.fromkeys(paper.SHARPNESS, (100, 250, 150)),
        prices={name: prices[name] * count / examples for name, count in weights.items()},
        limit={"conv1": first, "conv2": second, "fc1": hidden},
        milestone=1 / 3,
    )


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {"filters": first_filters(model)}


def _trained(run: str) -> nn.Module:
    """The network of a finished run."""
    return npn.load(finished_run(Path(run), EXPERIMENT.name).model_file, LeNet5())


def _like(run: str) -> nn.Module:
    """A network of the widths of a finished run, with new weights."""
    return redrawn(_trained(run))


def _growth(batches: int, budget: float | None, options: LeNetOptions) -> npn.Growth:
    assert options.overshoot
    return npn.Growth(
        init=options.growth_init or "zero",
        units=GROWTH,
        max_params=int(options.overshoot * budget) if budget else None,
        limit={"conv1": FULL[0], "conv2": FULL[1], "fc1": FULL[2]},
        grace=batches // 4,
        patience=5,
    )


def plain_widths(budget: float) -> tuple[int, int, int]:
    """Find the largest plain net in the proportions of `PLAIN`.

    Args:
        budget: the most weights it may have.

    Returns:
        Its widths.

    Example:
        >>> plain_widths(5320)
        (8, 10, 18)
    """
    scales = (scale / 100 for scale in range(400, 0, -1))
    widths = ([max(1, round(width * scale)) for width in PLAIN] for scale in scales)
    return next((a, b, c) for a, b, c in widths if count_weights(a, b, 16 * b, c) <= budget or (a, b, c) == (1, 1, 1))


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Report the size by open units.

    Args:
        plastic: the attached model.

    Returns:
        `params`: weights without biases, as the paper counts; `params_with_biases`: all parameters; `architecture`.
    """
    sizes = plastic.sizes()
    there = {name: plastic.model.get_parameter(f"{name}.weight").shape for name in ("conv1", "conv2", "fc1")}
    first, second, hidden = (sizes.get(name, shape[0]) for name, shape in there.items())  # in full, without gates
    features = sizes.get("fc1.columns", there["fc1"][1])
    weights = count_weights(first, second, features, hidden)
    return {
        "params": weights,
        "params_with_biases": weights + first + second + hidden + 10,
        "architecture": f"{first}-{second}-{features}-{hidden}",
    }


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings.
    """
    return LeNet5(), torch.zeros(2, 1, 28, 28)


def draw(path: Path, outcome: Outcome) -> None:
    """Draw learning curves (the paper's Fig. 3) and filters, and write Table I.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    title = f"LeNet-5 on MNIST, {outcome.result['mode']}, seed {outcome.result['seed']}"
    figures.learning_curves(path / "curves.png", outcome.rows, title)
    figures.keep_probabilities(path / "keep_probability.png", outcome.rows, f"{title}: keep probabilities")
    filters(path / "filters.png", outcome)
    table(path / "table.md", outcome)


EXPERIMENT = Experiment("lenet5-mnist", defaults, build, draw, sample, options=LeNetOptions, animate=animate)
