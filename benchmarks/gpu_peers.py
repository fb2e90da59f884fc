"""NPN beside other methods within the time that there is, for `npn bench peers` to take the runs as they are."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpu_train import LEAST, Printer, why
from npn.experiments.engine import runner
from npn.experiments.engine.options import Options, parse_seeds
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.engine.stopping import Deadline, Interrupted
from npn.experiments.peers.arms import NAMES
from npn.experiments.peers.networks import NETWORKS
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.runs import WIDTHS_OF, Comparison, missing
from npn.experiments.report.provenance import machine


class Cell(NamedTuple):
    """Some methods on one network at one budget, in one process.

    Attributes:
        network: name.
        budget: share of the weights.
        arms: names of methods; the later ones may follow from the first one's runs.
    """

    network: str
    budget: float
    arms: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the command line that runs this cell alone."""
        name = f"{self.network}-{self.budget:g}-{self.arms[0]}"
        networks = f"{self.network}:{self.budget:g}"
        return ("--networks", networks, "--arms", ",".join(self.arms), "--file", f"peers-{name}.json")


def cells(networks: str, arms: str) -> list[Cell]:
    """List what processes of their own can run at a time.

    Args:
        networks: "resnet20:0.4,lenet5", budgets after colons; without one, all three of the network.
        arms: names of methods; empty for all.
    """
    names = arms.split(",") if arms else list(NAMES)
    both = {WIDTHS_OF, "found"} <= set(names)  # one follows from the other's runs
    if both:
        names.remove("found")
    groups = [(name, "found") if both and name == WIDTHS_OF else (name,) for name in names]
    found = []
    for each in networks.split(","):
        network, _, given = each.partition(":")
        budgets = (float(given),) if given else NETWORKS[network].budgets
        found += [Cell(network, budget, group) for budget in budgets for group in groups]
    return found


def main(options: argparse.Namespace, end: float) -> dict[str, Any]:
    """Run trials, then seeds, of each method in turn until the time is over; write states to `options.file`.

    Args:
        options: of the command line.
        end: time by the monotonic clock.

    Returns:
        Network, budget and method -> how many runs are finished, their accuracies, and why no more.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    deadline = Deadline(max(end - time.monotonic(), 1e-3) / 60)
    settings = PeerOptions(epochs=options.epochs, device=options.device, data=options.data)

    def train(experiment: Experiment, chosen: Options, path: Path, resume: bool) -> Outcome:
        left = deadline.left()
        if left is not None and 60 * left < LEAST:
            raise Interrupted
        quiet = replace(experiment, checkpoint_every=1000)  # the last epoch before the end has one in any case
        shown = Printer(f"{path.parent.name} {path.name}")
        return runner.run(quiet, chosen, RunDirectory(path), shown, resume=resume, stop_after=left)

    found: dict[str, Any] = {}
    for cell in cells(options.networks, options.arms):
        comparison = Comparison(options.out / "runs" / "bench-peers", cell.network, settings, options.trials, train)
        for arm in cell.arms:
            reason, accuracies = missing(arm, cell.network) or "", []
            try:
                for result in () if reason else _results(comparison, arm, cell.budget, options.seeds):
                    accuracies.append(f"{result['accuracy']:.2%}")
            except Interrupted:
                reason = "no time left; --from goes on with it"
            except Exception as error:
                reason = why(error)
            found[f"{cell.network} {cell.budget:g} {arm}"] = {"accuracies": ", ".join(accuracies), "reason": reason}
            write_json(options.out / options.file, {"machine": machine(options.device), "peers": found})
    return found


def _results(comparison: Comparison, arm: str, budget: float, seeds: str) -> Iterator[dict[str, Any]]:
    for seed in parse_seeds(seeds):
        yield comparison.final(arm, seed, budget)
