"""Whole trainings of LeNet-5 on MNIST: plastic, plastic with masks alone, and dense.

In every round each training does one epoch, so that other load on the machine slows all of them alike. The dense one
is a plain PyTorch loop without npn: same batches, optimizer, learning rates and evaluation.

Run: NPN_DATA=... python benchmarks/runs.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

import npn
from common import BATCH_SIZE, batch, parser, write
from npn.experiments.data.splits import Data, Split
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Recipe, Row
from npn.experiments.engine.timing import interleaved
from npn.experiments.engine.training import epochs, evaluate, shuffled
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.report.tables import markdown_table, percent

SETTINGS = {
    f"{layout}, {update} AdamW": (layout == "channels_last", update == "fused")
    for layout in ("contiguous", "channels_last")
    for update in ("plain", "fused")
}
Setting = tuple[bool, bool]


@dataclass
class Training:
    """One of the trainings that run side by side."""

    rows: Iterator[Row]
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


def prepare(mode: str, options: argparse.Namespace, setting: Setting) -> Recipe:
    """Make the recipe of the experiment.

    Args:
        mode: of the training.
        options: of the command line; `examples` limits those of each split.
        setting: memory format and form of AdamW.
    """
    torch.manual_seed(options.seed)
    wanted = Options(mode=mode, seed=options.seed, epochs=options.epochs, data=options.data)
    recipe = lenet5.build(wanted.over(lenet5.defaults(wanted)))
    channels_last, fused = setting
    layout = torch.channels_last if channels_last else torch.contiguous_format
    recipe.plastic.model.to(memory_format=layout)
    for group in (*recipe.weights.param_groups, *recipe.gates.param_groups):
        group["fused"] = fused
    if options.examples:
        recipe.data = Data(*map(_few(options.examples), _splits(recipe.data)), classes=recipe.data.classes)
    return recipe


def _splits(data: Data) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def _few(count: int) -> Any:
    return lambda split: Split(split.x[:count], split.y[:count])


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


def dense_rows(recipe: Recipe, seed: int, setting: Setting) -> Iterator[Row]:
    """Train the full net in a plain loop.

    Args:
        recipe: gives data, schedule and learning rates.
        seed: of the training.
        setting: memory format and form of AdamW.
    """
    model, (channels_last, fused) = lenet5.LeNet5(), setting
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=lenet5.WEIGHT_DECAY, fused=fused)
    params = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    for epoch in recipe.schedule:
        name, start, _ = next(span for span in recipe.schedule.spans() if span[1] <= epoch < span[2])
        stage = next(stage for stage in recipe.schedule.stages if stage.name == name)
        model.train()
        for number, (x, y) in enumerate(shuffled(recipe.data, recipe.batch_size, seed, epoch)):
            recipe.step(stage, epoch - start, number)
            optimizer.param_groups[0]["lr"] = recipe.weights.param_groups[0]["lr"]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        evaluate(model, recipe.data.validation)
        _, accuracy = evaluate(model, recipe.data.test)
        yield {"accuracy": accuracy, "params": params, "architecture": "20-50-800-500"}


def step_settings(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure a step of the full net, dense and with gates, in every memory format and with both forms of AdamW.

    Args:
        rounds: measurements of each step.

    Returns:
        Side -> setting -> median ratio to the dense step with PyTorch's defaults, its quartiles, seconds.
    """
    x, y = batch(BATCH_SIZE)
    names = {f"{side}: {name}": (side, name) for side in ("dense", "plastic") for name in SETTINGS}
    steps = {full: _step(side == "plastic", SETTINGS[name], x, y) for full, (side, name) in names.items()}
    timings = interleaved(steps, next(iter(steps)), rounds)
    found: dict[str, dict[str, dict[str, float]]] = {"dense": {}, "plastic": {}}
    for full, (side, name) in names.items():
        found[side][name] = timings[full].summary()
    return found


def _step(gated: bool, setting: Setting, x: torch.Tensor, y: torch.Tensor) -> Any:
    channels_last, fused = setting
    torch.manual_seed(0)
    model = lenet5.LeNet5()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    plastic = npn.attach(model, x[:2]) if gated else None
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)]
    if plastic is not None:
        plastic.k = 7.0
        optimizers.append(torch.optim.Adam(plastic.logits(), lr=0.0, fused=fused))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        if plastic is None:
            F.cross_entropy(model(x), y).backward()
        else:
            plastic.backward(lambda: F.cross_entropy(model(x), y))
        for optimizer in optimizers:
            optimizer.step()

    return step


def best(settings: dict[str, dict[str, float]]) -> str:
    """Find the setting with the fastest step.

    Args:
        settings: setting -> summary of its `Timing`.
    """
    return min(settings, key=lambda name: settings[name]["median"])


def race(mode: str, options: argparse.Namespace, chosen: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Run all trainings of one mode, an epoch of each in turn.

    Args:
        mode: of the plastic trainings.
        options: of the command line.
        chosen: "dense" and "plastic" -> setting.

    Returns:
        Training -> measurements.
    """
    plastic, dense = SETTINGS[chosen["plastic"]], SETTINGS[chosen["dense"]]
    trainings = {
        "dense": Training(dense_rows(prepare(mode, options, dense), options.seed, dense)),
        mode: Training(plastic_rows(prepare(mode, options, plastic), options.seed, compaction=True)),
        f"{mode}, masks alone": Training(plastic_rows(prepare(mode, options, plastic), options.seed, compaction=False)),
    }
    while any([training.advance() for training in trainings.values()]):
        print(mode, {name: (f"{t.wall[-1]:.1f} s", t.last["params"]) for name, t in trainings.items()}, flush=True)
    whole = sum(trainings["dense"].wall)
    return {name: _entry(training, whole, sum(trainings["dense"].cpu)) for name, training in trainings.items()}


def _entry(training: Training, dense_wall: float, dense_cpu: float) -> dict[str, Any]:
    third = max(1, len(training.wall) // 3)
    parts = {"start": training.wall[:third], "middle": training.wall[third:-third], "end": training.wall[-third:]}
    return {
        **{key: training.last[key] for key in ("accuracy", "params", "architecture")},
        "epochs": len(training.wall),
        "seconds": round(sum(training.wall), 2),
        "cpu_seconds": round(sum(training.cpu), 2),
        "share_of_dense": round(sum(training.wall) / dense_wall, 3),
        "cpu_share_of_dense": round(sum(training.cpu) / dense_cpu, 3),
        "median_epoch_seconds": {
            name: round(statistics.median(part or training.wall), 3) for name, part in parts.items()
        },
    }


def tables(settings: dict[str, Any], modes: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Write a table of the trainings, and one of the settings that were tried.

    Args:
        settings: see `step_settings`.
        modes: mode -> training -> measurements.
    """
    header = ["training", "epochs", "seconds", "share of dense", "CPU share", "s/epoch", "accuracy", "parameters"]
    rows = [
        [
            name if name != "dense" else f"dense, as long as {mode}",
            entry["epochs"],
            f"{entry['seconds']:.0f}",
            f"{entry['share_of_dense']:.2f}",
            f"{entry['cpu_share_of_dense']:.2f}",
            " / ".join(f"{value:.1f}" for value in entry["median_epoch_seconds"].values()),
            percent(entry["accuracy"]),
            f"{entry['params']:,} ({entry['architecture']})",
        ]
        for mode, entries in modes.items()
        for name, entry in entries.items()
    ]
    tried = [
        [f"{side}: {name}", f"{row['median']:.3f}", f"{1e3 * row['seconds']:.1f}"]
        for side, found in settings.items()
        for name, row in found.items()
    ]
    return [markdown_table(header, rows), markdown_table(["step of the full net", "ratio", "ms"], tried)]


def main() -> None:
    """Choose the settings, run the trainings, print the tables, write them after each mode."""
    made = parser(
        __doc__,
        "runs",
        seed=(0, "of every training"),
        rounds=(20, "measurements of each setting"),
        examples=(0, "of each split, for a quick look; 0 for all"),
    )
    made.add_argument("--modes", default="sparsify,expand")
    made.add_argument("--epochs", help='as `npn run` takes them: in all, or "4,20,16"')
    made.add_argument("--data", help="folder of MNIST's files; else NPN_DATA, else downloaded")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    settings = step_settings(options.rounds)
    chosen = {side: best(found) for side, found in settings.items()}
    notes = [
        "In every round each training of a mode does one epoch, its evaluation on validation and test data included, "
        "in one process: what slows the machine down slows all alike. Seconds are sums over all epochs, `s/epoch` "
        "medians over the first, middle and last third. `CPU share` is the same from processor time, which other "
        "processes disturb less. Masks alone: closed units are masked, but stay in the tensors to the end. Not in "
        "these times, but in those of `npn run`: a checkpoint after each epoch.",
        f"Settings, by the second table: {chosen['dense']} for dense, {chosen['plastic']} for the others.",
    ]
    modes: dict[str, dict[str, dict[str, Any]]] = {}
    for mode in options.modes.split(","):
        modes[mode] = race(mode, options, chosen)
        found = {"modes": modes, "settings": settings, "chosen": chosen, "seed": options.seed, "epochs": options.epochs}
        write(options.out, "Whole trainings of LeNet-5", found, tables(settings, modes), notes)
    print(*tables(settings, modes), sep="\n\n")


if __name__ == "__main__":
    main()
