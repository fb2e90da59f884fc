"""One run of the comparison: the same network, data, order of batches, steps and optimizer, whatever the method."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import npn
from npn.errors import ConfigurationError
from npn.experiments.engine import execution
from npn.experiments.engine.building import channels_last, half_cosine, redrawn, set_rate
from npn.experiments.engine.options import STANDARD, Options, stage_lengths
from npn.experiments.engine.recipe import Experiment, Outcome, Recipe
from npn.experiments.engine.rundir import finished_run
from npn.experiments.engine.single_weights import hold_units_open, measure
from npn.experiments.peers import outside
from npn.experiments.peers.arms import COMMON, KINDS
from npn.experiments.peers.kinds import Kind, Plan
from npn.experiments.peers.networks import NETWORKS, Network
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.procedures import FINETUNE, PRETRAIN, SHRINK

NAME = "peers"
WARMUP = 400  # steps
BETWEEN = 1e-2  # keep probability of NPN's gates below which units go after each epoch


def defaults(options: Options) -> PeerOptions:
    """Return the settings of the first trial.

    Args:
        options: settings of the user.
    """
    assert isinstance(options, PeerOptions)
    network = options.network or "lenet300"
    if network not in NETWORKS:
        raise ConfigurationError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    mode = options.mode or "reinmax"
    if mode not in KINDS:
        raise ConfigurationError(f"mode must be one of {', '.join(KINDS)}, got {mode!r}")
    return PeerOptions(
        **STANDARD | {"estimator": KINDS[mode].estimator or STANDARD["estimator"]},
        mode=mode,
        network=network,
        precision="fp32",
        budget=None if KINDS[mode].role == "first" else NETWORKS[network].budgets[0],
        epochs=",".join(map(str, NETWORKS[network].epochs)),
        settings={name: default for name, (default, _, _) in (COMMON | dict(KINDS[mode].space)).items()},
    )


def build(options: Options) -> Recipe:
    """Make data, network, procedure, optimizers and schedule of one run.

    Args:
        options: complete settings.
    """
    assert isinstance(options, PeerOptions) and options.mode and options.network and options.settings
    assert options.precision
    assert options.k is not None
    kind, network = KINDS[options.mode], NETWORKS[options.network]
    lengths = stage_lengths(options.epochs, network.epochs)
    stages, before = _stages(kind, lengths, options.k)
    device = torch.device(options.device or "cpu")
    data = network.data(options.data).to(device)
    prepare = network.prepare(data)
    batches = math.ceil(len(data.train) / network.batch_size)
    full = network.weights()
    share = 1.0 if options.budget is None else options.budget
    example = prepare(data.train.x[:1])
    model = _model(kind, network, options, share * full, example).to(device)
    channels_last(model)
    forward = execution.forward(model, _context(options.precision, device))
    pretrain, shrink, finetune = (batches * epochs for epochs in lengths)
    plan = Plan(
        share * full,
        share,
        (pretrain, shrink, finetune),
        options.settings,
        data.train,
        partial(_loss, prepare, forward),
        prepare,
        network.batch_size,
    )
    procedure = kind.procedure(plan)
    if kind.role == "first":
        made = outside.pruner(model, example, network.last, options.settings["strength"])
        procedure = outside.GroupSparsity(made.regularize)
    gated: dict[str, Any] = {"unstructured": "*"} if kind.single else {}
    plastic = npn.attach(
        model, example, estimator=options.estimator or "reinmax", penalty=kind.penalty(plan), only=network.only, **gated
    )
    if kind.single and kind.estimator:
        hold_units_open(plastic)
    highest = network.learning_rate * options.settings["learning_rate"]
    decay = network.weight_decay * options.settings["weight_decay"]
    weights = torch.optim.AdamW(plastic.weights(), lr=highest, weight_decay=decay)
    learned = [logits for logits in plastic.logits() if logits.requires_grad]
    gates = torch.optim.Adam(learned, lr=options.settings.get("gate_rate", 1e-2))
    plastic.track(weights, gates)
    starts = {name: batches * (before + start) for name, start, _ in stages.spans()}

    def step(stage: npn.Stage, position: int, batch: int) -> None:
        """The learning rate depends on the number of steps only: warm-up, constant, half a cosine."""
        done = starts[stage.name] + position * batches + batch
        rate = highest * min(1.0, (done + 1) / min(WARMUP, pretrain))
        set_rate(weights, rate * half_cosine(max(0, done - pretrain - shrink), finetune))

    return Recipe(
        plastic=plastic,
        schedule=stages,
        weights=weights,
        gates=gates,
        data=data,
        batch_size=network.batch_size,
        measure=measure,
        compact_below=BETWEEN,
        step=step,
        augment=network.augment,
        prepare=prepare,
        forward=forward,
        about={"network": options.network, "full": full, **_earlier(options)},
        procedure=procedure,
        epochs_before=before,
    )


def _stages(kind: Kind, lengths: list[int], k: float) -> tuple[npn.Schedule, int]:
    """The stages of a run, and the epochs that an earlier run has done."""
    pretrain, shrink, finetune = (
        npn.Stage(PRETRAIN, lengths[0]),
        npn.Stage(SHRINK, lengths[1], k=k if kind.estimator else math.inf),
        npn.Stage(FINETUNE, lengths[2]),
    )
    if kind.role == "first":
        return npn.Schedule(pretrain, shrink), 0
    if kind.role == "second":
        return npn.Schedule(finetune), lengths[0] + lengths[1]
    return npn.Schedule(pretrain, shrink, finetune), 0


def _model(kind: Kind, network: Network, options: PeerOptions, weights: float, example: Tensor) -> nn.Module:
    """The network that a run starts with."""
    if options.like:
        return redrawn(_trained(options.like, network))
    if kind.role == "plain":
        return network.hand_picked(weights)
    if kind.role == "second":
        if not options.start:
            raise ConfigurationError(f"{options.mode} continues a run: expected its folder as start, got none")
        return outside.pruned(_trained(options.start, network), example.cpu(), network.last, weights)
    return network.full()


def _trained(run: str, network: Network) -> nn.Module:
    return npn.load(finished_run(Path(run), NAME).model_file, network.full())


def _earlier(options: PeerOptions) -> dict[str, Any]:
    """What the run that this one continues has cost."""
    if not options.start:
        return {}
    result = finished_run(Path(options.start), NAME).result()
    return {"before": {key: result[key] for key in ("training_macs", "seconds")}}


def _context(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if execution.grad_scaler(precision, device) is not None:
        raise ConfigurationError(
            f"precision must be 'fp32' or 'bf16', got {precision!r}: no method here scales its loss"
        )
    return execution.autocast(precision, device)


def _loss(
    prepare: Callable[[Tensor], Tensor], forward: execution.Forward, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> Tensor:
    return F.cross_entropy(forward(model, prepare(batch[0])), batch[1])


def sample(options: Options) -> tuple[nn.Module, Tensor]:
    """Make a network to load the model of a run into, and an example batch.

    Args:
        options: complete settings.
    """
    assert isinstance(options, PeerOptions) and options.network
    network = NETWORKS[options.network]
    return network.full(), torch.zeros(2, *network.shape)


def draw(path: Path, outcome: Outcome) -> None:
    """Nothing: the bench draws all runs in one figure.

    Args:
        path: folder of the run.
        outcome: of the run.
    """


EXPERIMENT = Experiment(NAME, defaults, build, draw, sample, threads=1, options=PeerOptions)
