"""A GPT on bytes of source code: heads, MLP units and whole branches go, or come."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from npn.errors import ConfigurationError
from npn.experiments.data.text import text
from npn.experiments.engine import execution
from npn.experiments.engine.building import attach, cost_term, half_cosine, in_full, path_steps, schedule, set_rate
from npn.experiments.engine.moving import animate
from npn.experiments.engine.options import STANDARD, Options
from npn.experiments.engine.procedure import Procedure
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.engine.rundir import finished_run
from npn.experiments.language.figures import by_kind, table
from npn.experiments.language.growing import Deepening
from npn.experiments.language.model import GPT, HEAD, initialise
from npn.experiments.language.options import LanguageOptions
from npn.experiments.language.sizes import BRANCHES, macs, measure, plain
from npn.experiments.report.scores import BITS

STAGES = {"sparsify": (6, 6, 18), "expand": (10, 10, 10), "dense": (30,), "scratch": (30,)}
BUDGET = {"sparsify": 0.5, "scratch": 0.5}  # of the full network's MACs; expand grows to all of it unless given one
SMALL = 0.2  # share of the heads and MLP units that expand starts with; at least two heads: a single one is no group
FIRST = 1 / 3  # share of the blocks that are open when it starts
PATH = {"sparsify": 0.8, "expand": 0.3}  # share of the plastic stage in which the bound leads to the budget
SETTLE = 0.5  # share of the plastic stage, at its end, in which a network with a price does not grow
OVERSHOOT = 1.3  # growth ends at so many times the budget, or at full size
WINDOWS, BATCH_SIZE = 1024, 8  # of an epoch, and of a training step
HELD_OUT = 128  # windows for validation, and for testing
LEARNING_RATE, BETAS, WEIGHT_DECAY = 3e-3, (0.9, 0.95), 0.1
WARMUP = 100  # training steps in which the learning rate rises
GATE_LEARNING_RATE = 1e-2
COMPACT_BELOW = 1e-2


def defaults(options: Options) -> LanguageOptions:
    """Return the settings that a user leaves open.

    Args:
        options: settings of the user.
    """
    mode = options.mode or "sparsify"
    return LanguageOptions(
        **STANDARD,
        mode=mode,
        budget=BUDGET.get(mode) if options.penalty is None else None,
        width=160,
        layers=6,
        context=256,
        norm="rms",
        positions="rotary",
        precision="fp32",
        learning_rate=LEARNING_RATE,
        blocks=False,
    )


def build(options: Options) -> Recipe:
    """Make data, model, gates, optimizers and schedule of one run.

    Args:
        options: complete settings, those of the GPT.
    """
    mode = options.checked_mode(STAGES)
    assert isinstance(options, LanguageOptions) and options.width and options.layers and options.context
    assert options.precision and options.learning_rate
    if options.like and mode != "scratch":
        raise ConfigurationError(f'like names a run whose sizes "scratch" trains anew, got it for mode {mode!r}')
    device, context, layers = torch.device(options.device or "cpu"), options.context, options.layers
    autocast = execution.autocast(options.precision, device)
    whole = macs(options.width, [_full(options.width)] * layers, context)
    budget = in_full(options.budget, whole)
    model = _started(options, mode, budget or whole).to(device)
    data, read = text(options.text, context=context, drawn=WINDOWS, held_out=HELD_OUT, device=device)
    stages, batches = schedule(options, STAGES[mode]), math.ceil(WINDOWS / BATCH_SIZE)
    path = path_steps(stages, PATH.get(mode, 1.0), batches)
    penalty = cost_term(options.penalty, None if mode == "scratch" else budget, "macs", steps=path)
    branches = BRANCHES if options.blocks or mode == "expand" else None
    plastic = attach(model, data.train.x[:1], options, penalty, branches=branches)  # costs count one window
    weights = torch.optim.AdamW(_decayed(plastic), lr=options.learning_rate, betas=BETAS)
    gates = torch.optim.Adam(plastic.logits(), lr=GATE_LEARNING_RATE)
    plastic.track(weights, gates)
    starts = {name: start for name, start, _ in stages.spans()}
    highest, steps = options.learning_rate, stages.epochs * batches

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """The learning rate rises linearly, then falls along half a cosine over the whole training."""
        done = (starts[stage.name] + position) * batches + batch
        set_rate(weights, highest * min(1.0, (done + 1) / WARMUP) * half_cosine(done, steps))

    call = execution.forward(model, autocast)
    settle, growth, procedure = 0, None, Procedure()
    if mode == "expand":
        first, plastic_stage, _ = stages.stages
        priced = bool(budget or options.penalty)
        settle = round(SETTLE * plastic_stage.epochs) if priced else 0
        hold = max(1, plastic_stage.epochs - settle) * batches
        growth = _growth(plastic, options, budget or whole, hold // batches, batches if priced else hold)
        procedure = Deepening(layers, max(1, round(FIRST * layers)), first.epochs, hold)
        procedure.close(plastic)
    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=BATCH_SIZE,
        measure=lambda plastic: measure(plastic, context),
        growth=growth,
        grow_first=True,
        settle=settle,
        compact_below=COMPACT_BELOW,
        start_from=options.start_from,
        step=step,
        forward=lambda module, x: call(module, x).transpose(1, 2),  # classes first, as cross-entropy expects them
        scaler=execution.grad_scaler(options.precision, device),
        choosing=4 * BATCH_SIZE,
        about={"base": {"macs": whole}, "width": options.width, "context": context, "text": read},
        procedure=procedure,
        score=BITS,
    )


def _full(width: int) -> tuple[int, int]:
    """Heads and MLP units of a block at full size."""
    return width // HEAD, 4 * width


def _model(options: LanguageOptions, sizes: tuple[int, int] | None = None) -> GPT:
    assert options.width and options.layers and options.context and options.norm and options.positions
    heads, hidden = sizes or _full(options.width)
    how: Any = {"context": options.context, "norm": options.norm, "positions": options.positions}
    return GPT(options.width, options.layers, heads=heads, hidden=hidden, **how)


def _started(options: LanguageOptions, mode: str, most: float) -> GPT:
    """The model that the training begins with."""
    assert options.width and options.layers and options.context
    if options.like:
        found = npn.load(finished_run(Path(options.like), EXPERIMENT.name).model_file, _model(options))
        assert isinstance(found, GPT)
        return initialise(found)
    if mode == "scratch":
        return _model(options, plain(options.width, options.layers, options.context, most))
    heads, hidden = _full(options.width)
    small = max(min(2, heads), round(SMALL * heads)), max(1, round(SMALL * hidden))
    return _model(options, small if mode == "expand" else None)


def _decayed(plastic: npn.Plasticity) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, biases and gains do not."""
    parts: list[list[nn.Parameter]] = [[], []]
    for parameter in plastic.weights():
        parts[parameter.dim() < 2].append(parameter)
    return [{"params": parts[0], "weight_decay": WEIGHT_DECAY}, {"params": parts[1], "weight_decay": 0.0}]


def _growth(plastic: npn.Plasticity, options: LanguageOptions, most: float, epochs: int, grace: int) -> npn.Growth:
    """The same share of every group at a time: to full size, or somewhat beyond a budget, for the gates to choose.

    If each of the epochs improves the loss, the last one has the final size.
    """
    assert options.width and options.layers and options.context
    heads, hidden = plain(options.width, options.layers, options.context, OVERSHOOT * most)
    limit = {
        group.name: max(group.size, heads if group.name.endswith("query") else hidden)
        for group in plastic.groups
        if group.grows
    }
    ratio = max(limit[group.name] / group.size for group in plastic.groups if group.name in limit)
    share = max(ratio ** (1 / max(1, epochs - 1)) - 1, 0.01)
    return npn.Growth(units=share, limit=limit, grace=grace, patience=5, init=options.growth_init or "zero")


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings, those of the GPT.
    """
    assert isinstance(options, LanguageOptions) and options.context
    return _model(options), torch.zeros(2, options.context, dtype=torch.int64)


def draw(path: Path, outcome: Outcome) -> None:
    """Draw learning curves and keep probabilities by kind of unit, and write the sizes after each stage.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    from npn.experiments.report import figures  # matplotlib, which training does not need

    title = f"GPT on text, {outcome.result['mode']}, seed {outcome.result['seed']}"
    figures.learning_curves(path / "curves.png", outcome.rows, title)
    rows = [{**row, "keep": by_kind(row["keep"])} for row in outcome.rows]
    figures.keep_probabilities(path / "keep_probability.png", rows, f"{title}: keep probabilities")
    table(path / "table.md", outcome.result)


EXPERIMENT = Experiment("gpt-text", defaults, build, draw, sample, options=LanguageOptions, animate=animate)
