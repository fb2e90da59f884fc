"""ResNet on CIFAR, leg by leg within the time that there is; a leg that is not finished goes on in a later call."""

import argparse
import json
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from npn.experiments.engine import runner
from npn.experiments.engine.campaign import run_name
from npn.experiments.engine.options import parse_seeds
from npn.experiments.engine.recipe import Outcome, Row
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.report.provenance import machine
from npn.experiments.resnet import recipe as resnet
from npn.experiments.resnet.arms import arms
from npn.experiments.resnet.figures import table
from npn.experiments.resnet.options import ResNetOptions

LEAST = 20.0  # seconds: with less, no leg is begun
ARMS = {name: arm for name, arm in arms(()).items() if arm.macs_of is None}  # the others follow from finished runs
GRAPHS = "CUDA graphs: the same training as without, through a path and a resize"


class Printer:
    """An observer that prints a line per epoch."""

    def __init__(self, leg: str) -> None:
        self.leg, self.began = leg, time.monotonic()

    def epoch(self, row: Row, epochs: int) -> None:
        """Print an epoch.

        Args:
            row: its measurements.
            epochs: of the run.
        """
        seconds, self.began = time.monotonic() - self.began, time.monotonic()
        size = f"{row['macs'] / 1e6:.1f} M MACs" if "macs" in row else f"{row['params']:,} weights"
        print(
            f"  {self.leg} {row['epoch'] + 1}/{epochs} {row['stage']}: loss {row['loss']:.3f}, validation "
            f"{row['validation_accuracy']:.2%}, {size}, {seconds:.2f} s",
            flush=True,
        )

    def stage(self, entry: Row) -> None:
        """Do nothing.

        Args:
            entry: summary of a stage.
        """


class Leg(NamedTuple):
    """One run.

    Attributes:
        arm: way to train, of `npn.experiments.resnet.arms`.
        budget: of the MACs; None for the full net.
        seed: of the run.
    """

    arm: str
    budget: float | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder, as `npn bench resnet56` looks for it."""
        return run_name(*self)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the command line that trains this leg alone."""
        arm = self.arm if self.budget is None else f"{self.arm}:{self.budget:g}"
        return ("--leg", arm, "--seeds", str(self.seed), "--file", f"train-{self.name}.json")


def legs(given: str, budget: float, seeds: str) -> list[Leg]:
    """List the legs of a command line; all of one seed before the next.

    Args:
        given: arms, "dense,sparsify,sparsify:0.4"; a number after a colon is a leg's own budget.
        budget: of the others.
        seeds: "0-2" or "0,3".
    """
    found = []
    for seed in parse_seeds(seeds):
        for each in given.split(","):
            arm, _, own = each.partition(":")
            found.append(Leg(arm, None if arm == "dense" else float(own or budget), seed))
    return found


def settings(options: argparse.Namespace, leg: Leg, graphs: bool) -> ResNetOptions:
    """Make the settings of a leg.

    Args:
        options: of the command line.
        leg: to train.
        graphs: whether to use CUDA graphs.
    """
    arm = ARMS[leg.arm]
    return ResNetOptions(
        mode=arm.mode,
        seed=leg.seed,
        budget=leg.budget,
        epochs=options.epochs if len(resnet.STAGES[arm.mode]) > 1 else str(length(options)),
        device=options.device,
        data=options.data,
        depth=options.depth,
        dataset=options.dataset,
        decay=options.decay,
        precision=options.precision,
        channels_last=True,
        graphs=graphs,
        **arm.settings,
    )


def length(options: argparse.Namespace) -> int:
    """Count the epochs of a leg.

    Args:
        options: of the command line.
    """
    return sum(int(each) for each in options.epochs.split(","))


def folder(options: argparse.Namespace, leg: Leg) -> Path:
    """Return the folder of a leg's run.

    Args:
        options: of the command line.
        leg: to train.
    """
    epochs = options.epochs.replace(",", "+")
    name = f"{options.dataset}-{options.depth}-{epochs}-{options.decay}"
    return Path(options.out / "runs" / name / leg.name)


def draw(path: Path, outcome: Outcome) -> None:
    """Write the table alone: pictures need matplotlib.

    Args:
        path: folder of the run.
        outcome: of the run.
    """
    table(path / "table.md", outcome.result)


def state(directory: RunDirectory, epochs: int) -> dict[str, Any]:
    """Summarise a run.

    Args:
        directory: of the run.
        epochs: that it takes.
    """
    rows = directory.metrics() if directory.metrics_file.exists() else []
    found: dict[str, Any] = {"epochs": len(rows), "of": epochs, "state": "finished" if directory.finished else "open"}
    if rows:
        for key in ("accuracy", "validation_accuracy"):
            found[key] = f"{rows[-1][key]:.2%}"
        found |= {"macs": f"{rows[-1]['macs']:,}", "params": f"{rows[-1]['params']:,}"}
    return found


def main(options: argparse.Namespace, end: float) -> dict[str, Any]:
    """Train the legs in turn until the time is over, and write their states to `options.file` after each.

    Args:
        options: of the command line.
        end: time by the monotonic clock.

    Returns:
        Name of each leg -> its state.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    experiment = replace(resnet.EXPERIMENT, draw=draw, checkpoint_every=10)
    used = machine(options.device)
    graphs = torch.device(options.device).type == "cuda" and not _graphs_failed(options.out / "checks.json")
    found: dict[str, Any] = {}
    for leg in legs(options.leg, options.budget, options.seeds):
        directory, reason, began = RunDirectory(folder(options, leg)), "", time.monotonic()
        before = len(directory.metrics()) if directory.metrics_file.exists() else 0
        left = end - began
        try:
            if leg.arm not in ARMS:
                reason = f"expected one of {', '.join(ARMS)}"
            elif not directory.finished and left < LEAST:
                reason = "no time left"
            elif not directory.finished:
                resume = directory.unfinished
                chosen = settings(options, leg, graphs)
                if resume:  # it began with graphs or without; both lead to the same numbers
                    chosen = replace(chosen, graphs=None)
                runner.run(experiment, chosen, directory, Printer(leg.name), resume=resume, stop_after=left / 60)
        except Interrupted:
            reason = "stopped in time; --from goes on with it"
        except Exception as error:
            reason = why(error)
        entry = found[leg.name] = {**state(directory, length(options)), "reason": reason}
        done = entry["epochs"] - before
        if done > 0:
            entry["seconds_per_epoch"] = round((time.monotonic() - began) / done, 3)
        print(f"  {leg.name}: {entry}", flush=True)
        write_json(options.out / options.file, {"machine": used, "graphs": graphs, "legs": found})
    return found


def why(error: Exception) -> str:
    """Say in a line of a table what was raised, and where.

    Args:
        error: that was raised.
    """
    text = " ".join(str(error).split())[:300].replace("|", "/")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


def _graphs_failed(checks: Path) -> bool:
    """Whether an earlier part of this call has found that graphs do not train alike."""
    if not checks.exists():
        return False
    result: str = json.loads(checks.read_text())["checks"].get(GRAPHS, {}).get("result", "skip")
    return result == "FAIL"
