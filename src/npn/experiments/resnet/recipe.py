"""The paper's third experiment (VI-C): ResNet-56 on CIFAR-10, shrunk from full width or grown from a fifth of it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn._utils.validation import whole_number
from npn.errors import ConfigurationError
from npn.experiments.data.augment import crop_and_flip
from npn.experiments.data.cifar import SOURCES, cifar, normalised, statistics
from npn.experiments.engine import execution
from npn.experiments.engine.building import (
    attach,
    check_overshoot,
    cost_term,
    half_cosine,
    in_full,
    path_steps,
    schedule,
    set_rate,
)
from npn.experiments.engine.moving import animate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.resnet.figures import by_section, table
from npn.experiments.resnet.model import WIDTHS, ResNet, scaled
from npn.experiments.resnet.options import ResNetOptions
from npn.experiments.resnet.sizes import LAST, base, measure, plain_width
from npn.functional.table import ESTIMATORS

STAGES = {"sparsify": (20, 180, 20), "expand": (20, 180, 20), "dense": (220,), "scratch": (220,)}
BUDGET = 0.5  # of the base network's MACs
SMALL = 0.2  # share of the width that expand starts with
PATH = {"sparsify": 0.8, "expand": 0.25}  # share of the plastic stage in which the bound leads to the budget
SETTLE = 0.3  # share of the plastic stage, at its end, without growth
BATCH_SIZE = 128
# the paper's plain recipe: weight decay on every parameter, those of BatchNorm and the biases among them
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
GATE_LEARNING_RATE = 1e-3
EPOCHS = 220  # the milestones are in epochs of this length; shorter schedules have them earlier, in proportion
MILESTONES, GATE_MILESTONES = (60, 120, 180), (120, 180)
DECAYS = ("steps", "cosine")
PRICE: dict[str, Any] = {"rate": 4e-3, "gain": 3.0, "scale": 1e-2}
HURRY = 8.0  # gates and price are faster where the plastic stage is shorter than the paper's, at most so many times
GROWTH, FASTEST = 0.2, 1.0  # share of a layer that is added at a time: in a full schedule, and at most in a shorter one
OVERSHOOT = 1.3  # growth ends at a plain net of so many times the budget, or of the base's width
COMPACT_BELOW = 1e-2
INNER = "blocks.*.branch.conv1"  # groups of the channels inside each block
BRANCHES = "blocks.*.branch"  # paths of the blocks' branches


def defaults(options: Options) -> ResNetOptions:
    """Return the settings of the paper, as far as it gives them.

    Args:
        options: settings of the user.
    """
    mode = options.mode or "sparsify"
    return ResNetOptions(
        **STANDARD,
        mode=mode,
        budget=BUDGET if options.penalty is None and mode != "dense" else None,
        depth=56,
        dataset="cifar10",
        decay="steps",
        stream=False,
        blocks=False,
        precision="fp32",
        channels_last=False,
        compile=False,
        graphs=False,
        antithetic_eval=False,
        overshoot=OVERSHOOT if mode == "expand" else None,
        round_to=1,
    )


def build(options: Options) -> Recipe:
    """Make data, model, gates, optimizers and schedule of one run.

    Args:
        options: complete settings, those of the residual networks.
    """
    mode = options.checked_mode(STAGES)
    assert isinstance(options, ResNetOptions) and options.depth and options.dataset and options.precision
    if options.decay not in DECAYS:
        raise ConfigurationError(f"decay must be one of {', '.join(map(repr, DECAYS))}, got {options.decay!r}")
    if options.antithetic_eval and all(each.weights for each in ESTIMATORS[options.estimator or "reinmax"].passes):
        two = ", ".join(name for name, each in ESTIMATORS.items() if not all(part.weights for part in each.passes))
        raise ConfigurationError(
            f"antithetic_eval is about a pass for its loss alone, which the estimators {two} have, got "
            f"{options.estimator!r}"
        )
    check_overshoot(options.overshoot, mode)
    whole_number("round_to", options.round_to, 1, "channels")
    device = torch.device(options.device or "cpu")
    execution.check_graphs(options.graphs, options.compile, device)
    context = execution.autocast(options.precision, device)
    layout = _layout(options)
    data = cifar(options.dataset, options.data).to(device)
    mean, std = statistics(data.train.x)

    def prepare(x: Tensor) -> Tensor:
        return normalised(x, mean, std).contiguous(memory_format=layout)

    sizes = base(options.depth, data.classes)
    budget = in_full(options.budget, sizes["zero_padding"]["macs"])
    width = SMALL if mode == "expand" else 1.0
    if mode == "scratch":
        most = budget or sizes["zero_padding"]["macs"]
        width = plain_width(options.depth, data.classes, most, bool(options.stream))
    model = _model(options, data.classes, width).to(device)
    stages = schedule(options, STAGES[mode])
    gated = len(stages.stages) == 3
    hurry = max(1.0, min(HURRY, STAGES[mode][1] / stages.stages[1].epochs)) if gated else 1.0
    epochs, batches = stages.epochs, math.ceil(len(data.train) / BATCH_SIZE)
    price = PRICE | {"rate": hurry * PRICE["rate"], "steps": path_steps(stages, PATH.get(mode, 1.0), batches)}
    plastic = attach(
        model,
        prepare(data.train.x[:1]),  # costs count the example batch: one image
        options,
        cost_term(options.penalty, None if mode == "scratch" else budget, "macs", **price),
        only=None if options.stream else INNER,
        columns=LAST,
        branches=BRANCHES if options.blocks else None,
    )
    weights = torch.optim.SGD(plastic.weights(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    gates = torch.optim.Adam(plastic.logits(), lr=hurry * GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    starts = {name: start for name, start, _ in stages.spans()}
    rates = ((weights, LEARNING_RATE, MILESTONES), (gates, hurry * GATE_LEARNING_RATE, GATE_MILESTONES))

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Both learning rates fall over the whole training."""
        done = (starts[stage.name] + position + batch / batches) / epochs
        for optimizer, rate, milestones in rates:
            set_rate(optimizer, rate * (steps(done, milestones) if options.decay == "steps" else half_cosine(done)))

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth(plastic, options, data.classes, budget, hurry, batches) if mode == "expand" else None,
        grow_first=True,
        settle=round(SETTLE * stages.stages[1].epochs) if gated else 0,
        compact_below=COMPACT_BELOW,
        start_from=options.start_from,
        step=step,
        augment=crop_and_flip,
        prepare=prepare,
        forward=execution.forward(model, context, compiled=bool(options.compile)),
        scaler=execution.grad_scaler(options.precision, device),
        graphs=npn.CudaGraphs(plastic) if options.graphs else None,
        antithetic_eval=bool(options.antithetic_eval),
        round_to=options.round_to or 1,
        about={"base": sizes, "dataset": options.dataset, "depth": options.depth},
    )


def steps(done: float, milestones: tuple[int, ...]) -> float:
    """Compute 0.1 to the number of milestones that have passed.

    Args:
        done: share of the training that is behind.
        milestones: in epochs of 220.

    Example:
        >>> [steps(epoch / 22, (60, 120, 180)) for epoch in (5, 6, 12, 21)]
        [1.0, 0.1, 0.01, 0.001]
    """
    passed = sum(EPOCHS * done >= milestone - 1e-6 for milestone in milestones)
    return float(f"1e-{passed}")


def _model(options: ResNetOptions, classes: int, width: float) -> ResNet:
    """Gated streams need projections: a channel that is added to zeros can neither be removed nor added."""
    assert options.depth
    stream = bool(options.stream)
    model = ResNet(options.depth, classes, projection=stream, width=width, stream=stream)
    model.to(memory_format=_layout(options))  # type: ignore[call-overload]  # resizes keep it
    return model


def _layout(options: ResNetOptions) -> torch.memory_format:
    return torch.channels_last if options.channels_last else torch.contiguous_format


def _growth(
    plastic: npn.Plasticity, options: ResNetOptions, classes: int, budget: float | None, hurry: float, batches: int
) -> npn.Growth:
    """The same share of every layer at a time, up to somewhat more than the budget, so that the gates have a choice."""
    assert options.depth and options.overshoot
    per = (options.depth - 2) // 6
    most = options.overshoot * budget if budget else None
    width = plain_width(options.depth, classes, most, bool(options.stream)) if most else 1.0
    limit = {}
    for group in plastic.groups:
        if group.grows:
            section = int(group.name.split(".")[1]) // per if group.name.startswith("blocks.") else 0
            limit[group.name] = max(group.size, scaled(WIDTHS[section], width))
    return npn.Growth(
        units=min(FASTEST, hurry * GROWTH),
        limit=limit,
        grace=batches // 4,
        patience=10,
        init=options.growth_init or "zero",
    )


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings, those of the residual networks.
    """
    assert isinstance(options, ResNetOptions) and options.dataset
    model = _model(options, SOURCES[options.dataset].classes, 1.0)
    return model, torch.zeros(2, 3, 32, 32).contiguous(memory_format=_layout(options))


def draw(path: Path, outcome: Outcome) -> None:
    """Draw learning curves and keep probabilities by section, and write Table II.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    from npn.experiments.report import figures  # matplotlib, which training does not need

    result = outcome.result
    title = f"ResNet-{result['depth']} on {result['dataset']}, {result['mode']}, seed {result['seed']}"
    rows = [{**row, "keep": by_section(row["keep"], (result["depth"] - 2) // 6)} for row in outcome.rows]
    figures.learning_curves(path / "curves.png", outcome.rows, title)
    figures.keep_probabilities(path / "keep_probability.png", rows, f"{title}: keep probabilities")
    table(path / "table.md", result)


EXPERIMENT = Experiment("resnet56-cifar10", defaults, build, draw, sample, options=ResNetOptions, animate=animate)
