"""The comparison over networks, budgets, methods and seeds: runs what time allows, and writes what there is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import differences, made_with, points, result_files
from npn.experiments.engine.campaign import Train
from npn.experiments.engine.rundir import make_folder, write_json
from npn.experiments.engine.stopping import Interrupted
from npn.experiments.peers.arms import COMPARED, KINDS, NAMES
from npn.experiments.peers.earlier import merged, read
from npn.experiments.peers.networks import NETWORKS
from npn.experiments.peers.options import PeerOptions
from npn.experiments.peers.page import draw, page
from npn.experiments.peers.runs import Comparison, absent, missing
from npn.experiments.report.provenance import command_line
from npn.experiments.report.tables import Result, spread

BEST = 4  # methods beside plain nets where --arms is "best"
VARIED = ("mode", "seed", "budget", "data", "estimator", "settings", "like", "start", "network")


@dataclass(frozen=True)
class Wanted:
    """What to compare.

    Attributes:
        networks: names of `networks.NETWORKS`.
        arms: names of `arms.NAMES`; empty for all of them, on ResNet-20 for the best four of those that have run on
            other networks, and plain nets.
        budgets: shares of the weights; empty for those of each network.
        seeds: of the runs.
        trials: of each method and budget.
    """

    networks: Sequence[str]
    arms: Sequence[str] = ()
    budgets: Sequence[float] = ()
    seeds: Sequence[int] = (0, 1, 2)
    trials: int = 4

    def check(self) -> None:
        """Raise unless all names exist.

        Raises:
            ConfigurationError: saying which there are.
        """
        for what, given, known in (("networks", self.networks, NETWORKS), ("arms", self.arms, NAMES)):
            for name in given:
                if name not in known:
                    raise ConfigurationError(f"{what} must be among {', '.join(known)}, got {name!r}")
        for share in self.budgets:
            if not 0 < share <= 1:
                raise ConfigurationError(f"budgets are shares of the weights in (0, 1], got {share:g}")
        if self.trials < 1:
            raise ConfigurationError(f"trials must be at least 1, got {self.trials}")


@dataclass(frozen=True)
class Cell:
    """One method at one budget on one network."""

    network: str
    budget: float
    arm: str


def bench(out: Path, runs: Path, options: PeerOptions, wanted: Wanted, train: Train) -> tuple[list[Path], bool]:
    """Run what is missing until it is complete or the time is over, and write `out` with .json, .md and .png.

    Each network and budget in turn: every method with a seed, before the first one its trials; then the next seed.
    Methods at budgets that the files have of an earlier command, with the same seeds, trials and epochs, stay there
    unless `runs` holds as many seeds of them.

    Args:
        out: path without ending.
        runs: folder of the single runs; finished ones are used as they are, and a stopped one is resumed.
        options: settings of every run: epochs, device, data.
        wanted: what to compare.
        train: trains one run.

    Returns:
        The files written, and whether runs are missing because the time is over.

    Raises:
        ConfigurationError: an unknown name, or `runs` holds runs with other settings.
    """
    wanted.check()
    make_folder(out.parent)
    earlier = read(out.with_suffix(".json"), wanted.seeds, wanted.trials, options.epochs)
    stopped = False
    try:
        for cells in _parts(runs, options, wanted, earlier):
            comparison = Comparison(runs, cells[0].network, options, wanted.trials, train)
            for seed in wanted.seeds:
                for cell in cells:
                    comparison.final(cell.arm, seed, cell.budget)
    except Interrupted:
        stopped = True
    summary = merged(collected(runs, options, wanted, earlier), earlier)
    files = result_files(out)
    write_json(files[0], summary)
    draw(files[2], summary)
    files[1].write_text(page(summary, files[2].name), encoding="utf-8")
    return files, stopped


def collected(
    runs: Path, options: PeerOptions, wanted: Wanted, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read what has run, and say what has not.

    Args:
        runs: folder of the single runs.
        options: settings of every run.
        wanted: what to compare.
        earlier: result of an earlier command, for the choice of the best methods.
    """
    networks, everything = [], list[Result]()
    for network in wanted.networks:
        comparison = Comparison(runs, network, options, wanted.trials, absent)
        results, trials, lacking = list[Result](), list[dict[str, Any]](), list[dict[str, Any]]()
        for budget in wanted.budgets or NETWORKS[network].budgets:
            for arm in _arms(runs, options, wanted, network, earlier):
                reason = missing(arm, network)
                done = [] if reason else _finished(comparison, arm, budget, wanted.seeds)
                results += done
                if len(done) < len(wanted.seeds):
                    count = len(wanted.seeds) - len(done)
                    lacking.append({"mode": arm, "budget": budget, "runs": count, "why": reason or "not run"})
                if not reason:
                    trials.append({"mode": arm, "budget": budget, "trials": _trials(comparison, arm, budget)})
        entries = points(results, NAMES)
        for entry in entries:
            own = [r for r in results if (r["mode"], r["options"]["budget"]) == (entry["mode"], entry["budget"])]
            entry["sparse_macs"] = spread([run["sparse_macs"] for run in own])
        networks.append(
            {
                "network": network,
                "title": NETWORKS[network].title,
                "weights": NETWORKS[network].weights(),
                "points": entries,
                "missing": lacking,
                "trials": trials,
                "differences": differences(results, COMPARED),
            }
        )
        everything += results
    made = made_with(everything, VARIED) if everything else {"command": command_line()}
    return {"experiment": "peers", "seeds": list(wanted.seeds), "trials": wanted.trials, "networks": networks, **made}


def _parts(runs: Path, options: PeerOptions, wanted: Wanted, earlier: Mapping[str, Any] | None) -> Iterator[list[Cell]]:
    """The methods that can run, for each network and budget."""
    for network in wanted.networks:
        arms = [arm for arm in _arms(runs, options, wanted, network, earlier) if missing(arm, network) is None]
        for budget in wanted.budgets or NETWORKS[network].budgets:
            yield [Cell(network, budget, arm) for arm in arms]


def _arms(
    runs: Path, options: PeerOptions, wanted: Wanted, network: str, earlier: Mapping[str, Any] | None
) -> Sequence[str]:
    if wanted.arms:
        return wanted.arms
    if network != "resnet20":
        return NAMES
    others = replace(wanted, networks=[name for name in NETWORKS if name != network], budgets=())
    found = merged(collected(runs, options, others), earlier)["networks"]
    return best_arms([entry for entry in found if entry["network"] != network], len(wanted.seeds), runs)


def best_arms(networks: Sequence[Mapping[str, Any]], seeds: int, runs: Path) -> list[str]:
    """Choose the methods on units of the highest validation accuracy, on average over networks and budgets.

    Args:
        networks: what has run, see `collected`.
        seeds: number of runs of each that counts.
        runs: folder of the runs, for the error message.

    Returns:
        The best, and plain nets.

    Raises:
        ConfigurationError: too few methods have run.
    """
    means: dict[str, list[float]] = {}
    for point in (point for entry in networks for point in entry["points"]):
        kind = KINDS[point["mode"]]
        if not kind.single and kind.role != "plain" and point["runs"] == seeds:
            means.setdefault(point["mode"], []).append(point["validation_accuracy"]["mean"])
    most = max((len(values) for values in means.values()), default=0)
    complete = {arm: fmean(values) for arm, values in means.items() if len(values) == most}
    if len(complete) < BEST:
        raise ConfigurationError(
            f"the best {BEST} methods are not known: expected finished runs of the other networks in {runs}, found "
            f"{len(complete)} methods; run those first, or name methods with --arms"
        )
    ranked = sorted(complete, key=lambda arm: -complete[arm])[:BEST]
    return [*ranked, "scratch", *(["found"] if "reinmax" in ranked else [])]


def _finished(comparison: Comparison, arm: str, budget: float, seeds: Sequence[int]) -> list[Result]:
    found = list[Result]()
    for seed in seeds:
        try:
            found.append(comparison.final(arm, seed, budget))
        except Interrupted:
            continue
    return found


def _trials(comparison: Comparison, arm: str, budget: float) -> list[dict[str, Any]]:
    try:
        return comparison.tried(arm, budget)
    except Interrupted:
        return []
