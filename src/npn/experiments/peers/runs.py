"""The runs of one network: trials of each method, then the chosen settings with every seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from npn._utils import cpu
from npn._utils.rng import preserved_rng
from npn.experiments.engine.campaign import Arm, Campaign, Train
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.peers import outside
from npn.experiments.peers.arms import FIRST, KINDS
from npn.experiments.peers.networks import NETWORKS
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.recipe import EXPERIMENT
from npn.experiments.peers.tuning import SEED, best, settings

WIDTHS_OF = "reinmax"  # the arm whose widths "found" trains from scratch


def absent(experiment: Experiment, options: Options, path: Path, resume: bool) -> Outcome:
    """In place of training: only finished runs are wanted.

    Raises:
        Interrupted: always.
    """
    raise Interrupted


@cache
def torch_pruning_problem(network: str) -> str | None:
    """Why Torch-Pruning cannot run on a network; None if it can.

    Args:
        network: name of the network.
    """
    if not outside.installed():
        return 'not installed: pip install "npn[peers]"'
    chosen = NETWORKS[network]
    with preserved_rng():
        return outside.problem(chosen.full(), cpu.zeros(1, *chosen.shape), chosen.last)


def missing(name: str, network: str, problem: Callable[[str], str | None] = torch_pruning_problem) -> str | None:
    """Say why a method cannot run; None if it can.

    Args:
        name: of the method.
        network: name of the network.
        problem: network -> why Torch-Pruning cannot run on it.
    """
    needs = KINDS[name].needs
    if needs == "BatchNorm" and not network.startswith("resnet"):
        return "needs BatchNorm"
    return problem(network) if needs == "Torch-Pruning" else None


class Comparison:
    """The runs of one network; what is missing is trained when it is asked for.

    Args:
        runs: folder of the runs.
        network: name of the network.
        options: settings of every run: epochs, device, data.
        trials: of each method and budget.
        train: trains one run; `absent` to read finished ones only.
    """

    def __init__(self, runs: Path, network: str, options: PeerOptions, trials: int, train: Train) -> None:
        self.network, self.trials = network, trials
        stages = dict.fromkeys(("sparsify", *KINDS), NETWORKS[network].epochs)
        options = replace(options, network=network)
        self._arms: dict[str, Arm] = {}
        self._campaign = Campaign(runs / network, EXPERIMENT, options, stages, self._arms, train)

    def tried(self, name: str, budget: float) -> list[dict[str, Any]]:
        """Run the trials of a method.

        Args:
            name: of the method.
            budget: share of the weights.

        Returns:
            Settings, validation accuracy and loss, weights of each trial.

        Raises:
            Interrupted: the time is over.
        """
        found = []
        for trial in range(self.trials):
            run = self._run(name, trial, SEED, budget)
            result = run.result()
            entry = {key: result[key] for key in ("validation_accuracy", "params")}
            loss = run.metrics()[-1]["validation_loss"]
            found.append({"settings": settings(name, trial), "validation_loss": loss, **entry})
        return found

    def final(self, name: str, seed: int, budget: float) -> dict[str, Any]:
        """Run a method with the settings that its trials chose.

        Args:
            name: of the method.
            seed: of the run.
            budget: share of the weights.

        Returns:
            The result, `mode` being the method's name; with the cost of a run that it continues.

        Raises:
            Interrupted: the time is over.
        """
        trial = best(self.tried(name, budget))
        result = self._run(name, trial, seed, budget).result()
        before: Mapping[str, float] = result.get("before", {})
        costs = {key: result[key] + before.get(key, 0) for key in ("training_macs", "seconds")}
        return {**result, **costs, "mode": name, "trial": trial}

    def _run(self, name: str, trial: int, seed: int, budget: float) -> RunDirectory:
        return self._campaign.run(self._arm(name, trial, budget), seed, budget)

    def _arm(self, name: str, trial: int, budget: float) -> str:
        """The name of a method with the settings of a trial, known to the campaign."""
        drawn, role = settings(name, trial), KINDS[name].role
        like = start = None
        if role == "second":
            drawn.pop("strength")
            start = self._arm(FIRST, trial, budget)
        if name == "found":
            like = self._arm(WIDTHS_OF, best(self.tried(WIDTHS_OF, budget)), budget)
        budgets: Sequence[float | None] = (None,) if role == "first" else (budget,)
        arm = Arm(name, budgets, {"settings": drawn}, like=like, start=start)
        title = f"{name}-trial{trial}"
        self._arms[title] = arm
        return title
