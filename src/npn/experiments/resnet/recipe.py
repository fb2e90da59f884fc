"""The paper's third experiment (VI-C): ResNet-56 on CIFAR-10, shrunk from full width or grown from a fifth of it."""

import bisect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.augment import crop_and_flip
from npn.experiments.data.cifar import SOURCES, cifar, normalised, statistics
from npn.experiments.engine import execution
from npn.experiments.engine.options import Options, ResNetOptions, cost_term, in_full, stage_lengths
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe, Row
from npn.experiments.report import figures
from npn.experiments.report.tables import markdown_table, percent
from npn.experiments.resnet.model import WIDTHS, Block, ResNet, scaled

STAGES = {"sparsify": (20, 180, 20), "expand": (20, 180, 20), "dense": (220,), "scratch": (220,)}
BUDGET = 0.5  # of the base network's MACs
SMALL = 0.2  # share of the width that expand starts with
SETTLE = 0.3  # share of the plastic stage, at its end, in which nothing grows
BATCH_SIZE = 128
# the paper's plain recipe: weight decay on every parameter, those of BatchNorm and the biases among them
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
GATE_LEARNING_RATE = 1e-3
EPOCHS = 220  # what the milestones are for; shorter schedules have them earlier, in proportion
MILESTONES, GATE_MILESTONES = (60, 120, 180), (120, 180)
DECAYS = ("steps", "cosine")
PRICE: dict[str, Any] = {"rate": 5e-4, "gain": 1.5, "scale": 5e-3}
HURRY = 8.0  # gates and price are faster where the plastic stage is shorter than the paper's, up to so many times
GROWTH, FASTEST = 0.2, 1.0  # share of a layer that is added at a time: in a full schedule, and at most in a hurry
OVERSHOOT = 1.3  # growth ends at a plain net of so many times the budget, or of the base's width
COMPACT_BELOW = 1e-2
INNER = "blocks.*.branch.conv1"  # groups of the channels inside each block
LAST = "fc"  # single inputs of the last layer have gates, as in the paper
BRANCHES = "blocks.*.branch"  # what each block adds to its shortcut


def defaults(options: Options) -> ResNetOptions:
    """The settings of the paper, as far as it gives them."""
    mode = options.mode or "sparsify"
    return ResNetOptions(
        mode=mode,
        seed=0,
        k=7.0,
        estimator="reinmax",
        function="sigmoid",
        budget=BUDGET if options.penalty is None and mode != "dense" else None,
        device="cpu",
        depth=56,
        dataset="cifar10",
        decay="steps",
        stream=False,
        blocks=False,
        precision="fp32",
        channels_last=False,
        compile=False,
    )


def build(options: Options) -> Recipe:
    """Data, model, gates, optimizers and schedule of one run."""
    mode = options.checked_mode(STAGES)
    assert isinstance(options, ResNetOptions) and options.depth and options.dataset and options.precision
    assert options.k is not None and options.estimator and options.function  # defaults() has filled them in
    if options.decay not in DECAYS:
        raise ConfigurationError(f"decay must be one of {', '.join(map(repr, DECAYS))}, got {options.decay!r}")
    device = torch.device(options.device or "cpu")
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
        width = plain_width(options, data.classes, budget or sizes["zero_padding"]["macs"])
    model = _model(options, data.classes, width).to(device)
    lengths = stage_lengths(options.epochs, STAGES[mode])
    names = ("pretrain", "plastic", "finetune") if len(lengths) == 3 else ("train",)
    hurry = max(1.0, min(HURRY, STAGES[mode][1] / lengths[1])) if len(lengths) == 3 else 1.0
    plastic = npn.attach(
        model,
        prepare(data.train.x[:1]),  # costs count the example batch: one image
        estimator=options.estimator,
        function=options.function,
        penalty=cost_term(
            replace(options, budget=budget if mode != "scratch" else None),
            "macs",
            **PRICE | {"rate": hurry * PRICE["rate"]},
        ),
        only=None if options.stream else INNER,
        columns=LAST,
        branches=BRANCHES if options.blocks else None,
    )
    weights = torch.optim.SGD(plastic.weights(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    gates = torch.optim.Adam(plastic.logits(), lr=hurry * GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    stages = [
        npn.Stage(name, length, k=options.k if name == "plastic" else math.inf)
        for name, length in zip(names, lengths, strict=True)
    ]
    starts = {stage.name: sum(lengths[:index]) for index, stage in enumerate(stages)}
    batches = math.ceil(len(data.train) / BATCH_SIZE)

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """Learning rates."""
        done = (starts[stage.name] + position + batch / batches) / sum(lengths)
        for optimizer, rate, milestones in (
            (weights, LEARNING_RATE, MILESTONES),
            (gates, hurry * GATE_LEARNING_RATE, GATE_MILESTONES),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * (steps(done, milestones) if options.decay == "steps" else cosine(done))

    return Recipe(
        plastic=plastic,
        schedule=npn.Schedule(*stages),
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=measure,
        growth=_growth(plastic, options, data.classes, budget, hurry, batches) if mode == "expand" else None,
        grow_first=True,
        settle=round(SETTLE * lengths[1]) if len(lengths) == 3 else 0,
        compact_below=COMPACT_BELOW,
        step=step,
        augment=crop_and_flip,
        prepare=prepare,
        forward=execution.forward(model, context, compiled=bool(options.compile)),
        scaler=execution.grad_scaler(options.precision, device),
        about={"base": sizes, "dataset": options.dataset, "depth": options.depth},
    )


def steps(done: float, milestones: tuple[int, ...]) -> float:
    """0.1 to the number of milestones passed, which are given in epochs of 220.

    Args:
        done: share of the training that is behind.
        milestones: where it falls.

    Example:
        >>> [steps(epoch / 22, (60, 120, 180)) for epoch in (5, 6, 12, 21)]
        [1.0, 0.1, 0.01, 0.001]
    """
    passed = sum(EPOCHS * done >= milestone - 1e-6 for milestone in milestones)
    return float(f"1e-{passed}")


def cosine(done: float) -> float:
    """Half a cosine from 1 down to 0 over the training.

    Example:
        >>> cosine(0.0), round(cosine(0.5), 2), round(cosine(1.0), 2)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * done))


def base(depth: int, classes: int) -> dict[str, dict[str, int]]:
    """Size of the full network with either kind of shortcut: papers differ in which one they compare with."""
    sizes = {}
    for name, projection in (("zero_padding", False), ("projection", True)):
        with torch.device("meta"):
            model = ResNet(depth, classes, projection=projection)
        sizes[name] = {
            "params": npn.count_params(model, biases=False),
            "params_with_biases": npn.count_params(model),
            "macs": plain_macs(model),
        }
    return sizes


def measure(plastic: npn.Plasticity) -> dict[str, Any]:
    """Size by open units, of one image.

    `params` are weights without biases and BatchNorm, `macs` those of the convolutions and the last layer. The
    `architecture` gives for each section the channels of its stream and those inside all of its blocks together;
    `channels` has the latter block by block, 0 for one that is only its shortcut, and `blocks` counts the others.
    `features` are the inputs of the last layer.
    """
    model = plastic.model
    assert isinstance(model, ResNet)
    sizes = plastic.sizes()
    streams, blocks = model.channels(sizes, closed_branches(plastic))
    inner = [middle for _, _, middle, _ in blocks]
    area = 32 * 32
    weights, macs, normalisation = 27 * streams[0], 27 * streams[0] * area, 2 * streams[0]
    for old, new, middle, block in blocks:
        area //= block.stride**2
        own = 9 * (old + new) * middle + (old * new if block.projects else 0)
        weights, macs = weights + own, macs + own * area
        normalisation += 2 * (middle + new * (bool(middle) + block.projects))
    features = sizes[f"{LAST}.columns"]
    last = features * model.fc.out_features
    per = len(inner) // len(WIDTHS)
    totals = [sum(inner[start : start + per]) for start in range(0, len(inner), per)]
    return {
        "params": weights + last,
        "params_with_biases": weights + last + normalisation + model.fc.out_features,
        "macs": macs + last,
        "architecture": " ".join(f"{stream}({total})" for stream, total in zip(streams, totals, strict=True)),
        "channels": inner,
        "features": features,
        "blocks": sum(middle > 0 for middle in inner),
    }


def closed_branches(plastic: npn.Plasticity) -> list[str]:
    """Paths of the branches that exist and are closed."""
    branches = plastic.structure.branches
    if branches is None:
        return []
    mask = plastic.group(branches.name).gate.present.tolist()
    return [path for path, is_open in zip(branches.paths, mask, strict=True) if not is_open]


def _model(options: ResNetOptions, classes: int, width: float) -> ResNet:
    """Streams that are gated need projections: channels added to zeros can neither go nor come."""
    assert options.depth
    stream = bool(options.stream)
    model = ResNet(options.depth, classes, projection=stream, width=width, stream=stream)
    model.to(memory_format=_layout(options))  # type: ignore[call-overload]  # which resizes keep
    return model


def _layout(options: ResNetOptions) -> torch.memory_format:
    return torch.channels_last if options.channels_last else torch.contiguous_format


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """A network to load a run's model into, and an example batch."""
    assert isinstance(options, ResNetOptions) and options.dataset
    model = _model(options, SOURCES[options.dataset].classes, 1.0)
    return model, torch.zeros(2, 3, 32, 32).contiguous(memory_format=_layout(options))


def plain_width(options: ResNetOptions, classes: int, macs: float) -> float:
    """The largest width with at most so many MACs, in 64ths of the full one.

    Example:
        >>> plain_width(ResNetOptions(depth=8), 10, macs=7e6)
        0.53125
    """

    def cost(width: int) -> int:
        with torch.device("meta"):
            return plain_macs(_model(options, classes, width / WIDTHS[-1]))

    return max(1, bisect.bisect_right(range(1, WIDTHS[-1] + 1), macs, key=cost)) / WIDTHS[-1]


def plain_macs(model: ResNet) -> int:
    """MACs of one image by the shapes of the weights: what `npn.count_macs` says, without a forward pass.

    Example:
        >>> f"{plain_macs(ResNet(20)):,}"
        '40,551,040'
    """
    area = 32 * 32
    macs = area * model.conv1.weight.numel()
    for block in model.blocks:
        assert isinstance(block, Block)
        area //= block.stride**2
        macs += area * sum(weight.numel() for weight in block.parameters() if weight.dim() == 4)
    return macs + model.fc.weight.numel()


def _growth(
    plastic: npn.Plasticity, options: ResNetOptions, classes: int, budget: float | None, hurry: float, batches: int
) -> npn.Growth:
    """The same share of every layer at a time, up to somewhat more than the budget, which leaves a choice."""
    assert options.depth
    per = (options.depth - 2) // 6
    width = plain_width(options, classes, OVERSHOOT * budget) if budget else 1.0
    limit = {}
    for group in plastic.groups:
        if group.grows:
            section = int(group.name.split(".")[1]) // per if group.name.startswith("blocks.") else 0
            limit[group.name] = max(group.size, scaled(WIDTHS[section], width))
    return npn.Growth(units=min(FASTEST, hurry * GROWTH), limit=limit, grace=batches // 4, patience=10)


def draw(path: Path, outcome: Outcome) -> list[Path]:
    """Learning curves, keep probabilities by section, and Table II."""
    result = outcome.result
    title = f"ResNet-{result['depth']} on {result['dataset']}, {result['mode']}, seed {result['seed']}"
    rows = [{**row, "keep": by_section(row["keep"], (result["depth"] - 2) // 6)} for row in outcome.rows]
    drawn = [
        figures.learning_curves(path / "curves.png", outcome.rows, title),
        figures.keep_probabilities(path / "keep_probability.png", rows, f"{title}: keep probabilities"),
        table(path / "table.md", result),
    ]
    return [file for file in drawn if file is not None]


def by_section(histograms: dict[str, list[int]], per: int) -> dict[str, list[int]]:
    """The histograms of what is inside blocks, added up by sections of so many blocks; the others apart."""
    empty = [0] * len(next(iter(histograms.values())))
    found = {f"blocks of section {i + 1}": [empty] for i in range(len(WIDTHS))}  # all of them may be gone
    for name, counts in histograms.items():
        if name.endswith(".branch.conv1"):
            found[f"blocks of section {int(name.split('.')[1]) // per + 1}"].append(counts)
        else:
            other = {"branches": "branches", f"{LAST}.columns": "inputs of the last layer"}.get(name, "streams")
            found.setdefault(other, []).append(counts)
    return {name: [sum(column) for column in zip(*part, strict=True)] for name, part in found.items()}


def table(path: Path, result: Row) -> Path:
    """Sizes and accuracies beside both bases, in Markdown (the paper's Table II); reductions are in percent."""
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


EXPERIMENT = Experiment("resnet56-cifar10", defaults, build, draw, sample, options=ResNetOptions)
