"""Whole trainings of an experiment side by side: the full net and a small one in a plain loop, shrunk, grown.

In every round each training does one epoch, so that other load on the machine slows all of them alike. Dense and
scratch are a plain PyTorch loop without npn: same batches, optimizer, learning rates and evaluation.

Run: NPN_DATA=... python benchmarks/runs.py --threads 1
     python benchmarks/runs.py gpt-text --set layers=4 --set precision=bf16 --epochs 3,7,5 --out results/runs-gpt
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from common import parser, write
from npn.experiments.data.splits import Split
from npn.experiments.engine.options import in_one_stage
from npn.experiments.engine.recipe import Experiment, Recipe, Row
from npn.experiments.engine.training import epochs, evaluate, shuffled
from npn.experiments.language import recipe as language
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.report.scores import Score
from npn.experiments.report.tables import markdown_table
from npn.experiments.resnet import recipe as resnet

RECIPES: dict[str, Any] = {module.EXPERIMENT.name: module for module in (lenet5, resnet, language)}
MASKS_ALONE = "-masked"
PLAIN = ("dense", "scratch")  # modes without gates


class Memory:
    """Bytes that a training step needs besides its batch, counted once an epoch.

    Weights, their gradients and the optimizer's state, and what the forward pass keeps for the backward pass, weights
    under masks included. Temporary results are left out.

    Args:
        recipe: whose forward pass and steps are watched.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.forward, self.step = recipe, recipe.forward, recipe.step
        self.found: list[int] = []
        self.own: dict[int, int] | None = None  # storages of weights and optimizers' state, before masks are applied
        recipe.forward, recipe.step = self._forward, self._begin

    def _begin(self, stage: Any, position: int, batch: int) -> None:
        self.step(stage, position, batch)
        if batch == 1:  # the first step of a training makes the optimizers' state
            optimizers = (self.recipe.weights, self.recipe.gates)
            self.weights = [p for one in optimizers for group in one.param_groups for p in group["params"]]
            states = [t for one in optimizers for state in one.state.values() for t in state.values()]
            self.own = storages([*self.weights, *states])

    def _forward(self, model: nn.Module, x: Tensor) -> Tensor:
        if self.own is None or not torch.is_grad_enabled():
            return self.forward(model, x)
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor.detach())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = self.forward(model, x)
        own, self.own = self.own, None
        held = {place: count for place, count in (own | storages(kept)).items() if place not in storages([x])}
        self.found.append(sum(held.values()) + sum(p.nbytes for p in self.weights))  # gradients are as large
        return out


def storages(tensors: Sequence[Any]) -> dict[int, int]:
    """Find where tensors lie, and the bytes there; what is no tensor is left out.

    Args:
        tensors: some of which may share memory.
    """
    places = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return {place.data_ptr(): place.nbytes() for place in places}


@dataclass
class Training:
    """One of the trainings that run side by side."""

    rows: Iterator[Row]
    memory: Memory
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    last: Row = field(default_factory=dict)

    def advance(self) -> bool:
        """Do an epoch, evaluation included; False when none is left."""
        wall, cpu = time.perf_counter(), time.process_time()
        row = next(self.rows, None)
        if row is None:
            return False
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        self.last = row
        return True


def prepare(experiment: Experiment, mode: str, options: argparse.Namespace) -> Recipe:
    """Make the recipe of a training.

    Args:
        experiment: to train.
        mode: of the training.
        options: of the command line; `examples` limits those of each split.
    """
    torch.manual_seed(options.seed)
    stages = RECIPES[experiment.name].STAGES
    length = options.epochs
    if mode in PLAIN:
        length = in_one_stage(length, stages["sparsify"]) or str(sum(stages["sparsify"]))
    given = experiment.options(mode=mode, seed=options.seed, epochs=length, data=options.data)
    given = replace(given, **settings(given, options.set))
    recipe = experiment.build(experiment.complete(given))
    if options.examples:
        few = {
            name: Split(part.x[: options.examples], part.y[: options.examples])
            for name in ("train", "validation", "test")
            if len(part := getattr(recipe.data, name)) > options.examples
        }
        recipe.data = replace(recipe.data, **few)
    return recipe


def settings(options: Any, given: Sequence[str]) -> dict[str, Any]:
    """Read further settings.

    Args:
        options: of the experiment.
        given: "name=value" each.

    Raises:
        SystemExit: there is no such setting.
    """
    found: dict[str, Any] = {}
    for each in given:
        name, _, value = each.partition("=")
        if not value or not hasattr(options, name):
            raise SystemExit(f"expected a setting of the experiment such as layers=4, got {each!r}")
        found[name] = int(value) if value.isdecimal() else {"true": True, "false": False}.get(value, value)
    return found


def plastic_rows(recipe: Recipe, seed: int, *, compaction: bool) -> Iterator[Row]:
    """Train as `npn run` does.

    Args:
        recipe: to train.
        seed: of the training.
        compaction: remove closed units; else they stay in the tensors, masked.
    """
    if not compaction:
        recipe.compact_below = 0.0
    return (row for _, row in epochs(recipe, seed))


def plain_rows(recipe: Recipe, seed: int) -> Iterator[Row]:
    """Train in a plain loop, without gates.

    Args:
        recipe: of one of the modes `PLAIN`.
        seed: of the training.
    """
    size = recipe.measure(recipe.plastic)
    recipe.plastic.detach()
    model, (stage,) = recipe.plastic.model, recipe.schedule.stages
    for epoch in range(stage.epochs):
        model.train()
        for number, (x, y) in enumerate(shuffled(recipe.data, recipe.batch_size, seed, epoch)):
            recipe.step(stage, epoch, number)
            recipe.weights.zero_grad()
            x = recipe.prepare(x)
            recipe.loss(recipe.forward(model, x), x, y).backward()
            recipe.weights.step()
        evaluate(model, recipe.data.validation, forward=recipe.logits)
        score = recipe.score
        yield {**size, score.key: score.of(*evaluate(model, recipe.data.test, forward=recipe.logits))}


def race(experiment: Experiment, options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], Score]:
    """Run all trainings, an epoch of each in turn.

    Args:
        experiment: to train.
        options: of the command line.

    Returns:
        Training -> measurements, and what they are scored by.
    """
    trainings: dict[str, Training] = {}
    for name in options.trainings.split(","):
        mode = name.removesuffix(MASKS_ALONE)
        recipe = prepare(experiment, mode, options)
        memory, score = Memory(recipe), recipe.score
        rows = (
            plain_rows(recipe, options.seed)
            if mode in PLAIN
            else plastic_rows(recipe, options.seed, compaction=not name.endswith(MASKS_ALONE))
        )
        trainings[name] = Training(rows, memory)
    while any([training.advance() for training in trainings.values()]):
        print({name: (f"{t.wall[-1]:.1f} s", t.last["params"]) for name, t in trainings.items()}, flush=True)
    return {name: entry(training, trainings["dense"], score.key) for name, training in trainings.items()}, score


def entry(training: Training, dense: Training, key: str) -> dict[str, Any]:
    """Collect what was measured of one training.

    Args:
        training: that has ended.
        dense: the one to compare with.
        key: of the score in the rows.
    """
    third = max(1, len(training.wall) // 3)
    parts = {"start": training.wall[:third], "middle": training.wall[third:-third], "end": training.wall[-third:]}
    return {
        **{name: training.last[name] for name in ("params", "architecture", key)},
        "epochs": len(training.wall),
        "seconds": round(sum(training.wall), 2),
        "cpu_seconds": round(sum(training.cpu), 2),
        "share_of_dense": round(sum(training.wall) / sum(dense.wall), 3),
        "cpu_share_of_dense": round(sum(training.cpu) / sum(dense.cpu), 3),
        "median_epoch_seconds": {
            name: round(statistics.median(part or training.wall), 3) for name, part in parts.items()
        },
        "bytes": {"peak": max(training.memory.found), "end": training.memory.found[-1]},
    }


def table(found: dict[str, dict[str, Any]], score: Score) -> str:
    """Write a row for each training.

    Args:
        found: training -> measurements.
        score: of the experiment.
    """
    header = [
        "training", "epochs", "seconds", "share of dense", "CPU share", "s/epoch", "MiB, peak", "MiB, end",
        f"test {score.name}", "parameters",
    ]  # fmt: skip
    rows = [
        [
            name,
            row["epochs"],
            f"{row['seconds']:.0f}",
            f"{row['share_of_dense']:.2f}",
            f"{row['cpu_share_of_dense']:.2f}",
            " / ".join(f"{value:.1f}" for value in row["median_epoch_seconds"].values()),
            *(f"{row['bytes'][when] / 2**20:.1f}" for when in ("peak", "end")),
            score.text(row[score.key]),
            f"{row['params']:,} ({row['architecture']})",
        ]
        for name, row in found.items()
    ]
    return markdown_table(header, rows)


def main() -> None:
    """Run the trainings, print the table and write it."""
    made = parser(
        __doc__, "runs", seed=(0, "of every training"), examples=(0, "of each split, for a quick look; 0 for all")
    )
    made.add_argument("experiment", nargs="?", default="lenet5-mnist", choices=RECIPES)
    made.add_argument(
        "--trainings",
        default="dense,sparsify,expand,scratch",
        help=f"dense among them; sparsify{MASKS_ALONE}: without compaction",
    )
    made.add_argument("--epochs", help='as `npn run` takes them: in all, or "4,20,16"')
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the experiment")
    made.add_argument("--data", help="folder of the data; else NPN_DATA, else downloaded")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    found, score = race(RECIPES[options.experiment].EXPERIMENT, options)
    notes = [
        "In every round each training does one epoch, its evaluation on validation and test data included, in one "
        "process: what slows the machine down slows all alike. Seconds are sums over all epochs, `s/epoch` medians "
        "over the first, middle and last third. `CPU share` is the same from processor time, which other processes "
        "disturb less. Dense, the full net, and scratch, a small one, are a plain loop without npn. Not in these "
        "times, but in those of `npn run`: a checkpoint after each epoch.",
        "MiB are those of weights, gradients, optimizers' state and what the forward pass keeps for the backward pass, "
        f"in one step, counted in every epoch. {MASKS_ALONE[1:].title()}: closed units stay in the tensors to the end.",
    ]
    measured = {"trainings": found, "experiment": options.experiment, "seed": options.seed, "epochs": options.epochs}
    write(options.out, f"Whole trainings: {options.experiment}", measured, [table(found, score)], notes)
    print(table(found, score))


if __name__ == "__main__":
    main()
