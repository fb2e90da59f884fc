"""How few single weights LeNets need: both networks over seeds, beside plain nets and published figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npn.errors import ConfigurationError
from npn.experiments.engine.bench import difference_lines, differences, made_with, points, result_files
from npn.experiments.engine.campaign import Arm, Campaign, Train
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment
from npn.experiments.engine.rundir import write_json
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.lenet300 import recipe as lenet300
from npn.experiments.lenet300.options import LeNet300Options
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import Result, markdown_table, percent_spread, spread

AUGMENTED = {"augment": True}
COMPARED = (("weights", "scratch"), ("augmented", "scratch"))
VARIED = ("mode", "seed", "budget", "data", "epochs", "augment", "weight_decay", "learning_rate", "weights", "units",
          "teacher", "like", "preset", "overshoot")  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network of the bench.

    Attributes:
        title: for people.
        experiment: that trains it.
        options: settings of every run.
        stages: of each mode by default.
        arms: name -> how it is trained.
        published: method -> (weights left, test error in percent).
    """

    title: str
    experiment: Experiment
    options: Options
    stages: Mapping[str, Sequence[int]]
    arms: Mapping[str, Arm]
    published: Mapping[str, tuple[int, float]]


NETWORKS = {
    "lenet300": Network(
        title="LeNet-300-100, 266,200 weights",
        experiment=lenet300.EXPERIMENT,
        options=LeNet300Options(),
        stages=lenet300.STAGES,
        arms={
            "weights": Arm("sparsify", (lenet300.BUDGET,)),
            "augmented": Arm("sparsify", (lenet300.BUDGET,), AUGMENTED),
            "scratch": Arm("scratch", (lenet300.BUDGET,)),
        },
        published={"SparseVD": (3_900, 1.92), "DNS": (4_750, 1.99), "SWS": (11_600, 1.94), "Han": (22_200, 1.59)},
    ),
    "lenet5": Network(
        title="LeNet-5, 430,500 weights",
        experiment=lenet5.EXPERIMENT,
        options=LeNetOptions(),
        stages={"sparsify": lenet5.SINGLE_STAGES, "scratch": (sum(lenet5.SINGLE_STAGES),)},
        arms={
            "weights": Arm("sparsify", (lenet5.SINGLE_WEIGHTS,), {"weights": True}),
            "augmented": Arm("sparsify", (lenet5.SINGLE_WEIGHTS,), {"weights": True, **AUGMENTED}),
            "scratch": Arm("scratch", (lenet5.SINGLE_WEIGHTS,)),
        },
        published={"SparseVD": (1_540, 0.75), "SWS": (2_150, 0.97), "DNS": (3_880, 0.91), "Han": (35_900, 0.77)},
    ),
}
LABELS = {
    "weights": "npn, a gate on every weight",
    "augmented": "npn, a gate on every weight, augmented images",
    "scratch": "plain net of that many weights, from scratch",
}


def bench(
    out: Path,
    runs: Path,
    options: Options,
    networks: Sequence[str],
    seeds: Sequence[int],
    modes: Sequence[str],
    train: Train,
) -> list[Path]:
    """Train every arm of the networks with every seed, and write `out` with the endings .json, .md and .png.

    Finished runs in `runs` are used as they are, and a stopped one is resumed.

    Args:
        out: path without ending.
        runs: folder of the single runs.
        options: epochs, device and data of every run.
        networks: names of `NETWORKS`.
        seeds: to train with.
        modes: names of the arms.
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown network or arm, or `runs` holds runs with other settings.
    """
    for name in networks:  # all of them, before hours of training
        if name not in NETWORKS:
            raise ConfigurationError(f"networks must be among {', '.join(NETWORKS)}, got {name!r}")
    files, entries, everything = result_files(out), list[dict[str, Any]](), list[Result]()
    for name in networks:
        network = NETWORKS[name]
        own = replace(network.options, epochs=options.epochs, device=options.device, data=options.data)
        campaign = Campaign(runs / name, network.experiment, own, network.stages, network.arms, train)
        made = campaign.trained(seeds, modes)
        results = [{**run.result(), "mode": arm} for arm, run in made]
        entries.append(
            {
                "network": name,
                "title": network.title,
                "points": [_with_open_weights(point, results) for point in points(results, tuple(LABELS))],
                "differences": differences(results, COMPARED),
                "published": {
                    k: {"params": params, "error": error} for k, (params, error) in network.published.items()
                },
            }
        )
        everything += results
    summary = {"experiment": "single-weights", "networks": entries, **made_with(everything, VARIED)}
    write_json(files[0], summary)
    draw(files[2], entries)
    files[1].write_text(page(summary, files[2].name), encoding="utf-8")
    return files


def _with_open_weights(point: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Add what only networks with closed weights have: multiply-adds of open weights, open weights of each layer."""
    own = [result for result in results if result["mode"] == point["mode"]]
    layers = {result["seed"]: result["layers"] for result in own if "layers" in result}
    return {**point, "sparse_macs": spread([run.get("sparse_macs", run["macs"]) for run in own]), "layers": layers}


def page(summary: Mapping[str, Any], picture: str) -> str:
    """Write the Markdown page: both networks, published figures, differences, and the record of how it was made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
    """
    header = ("training", "budget", "epochs", "seeds", "weights", "inputs and units that are read", "MACs at the end",
              "training MACs", "validation", "test")  # fmt: skip
    lines = ["# Single weights: LeNets on MNIST", "", f"![Weights against test error]({picture})", ""]
    for entry in summary["networks"]:
        rows = [
            (
                LABELS[point["mode"]],
                f"{point['budget']:,.0f}",
                point["epochs"],
                point["runs"],
                f"{point['params']['mean']:,.0f}",
                ", ".join(seed["architecture"] for seed in point["seeds"]),
                f"{point['sparse_macs']['mean']:,.0f}",
                f"{point['training_macs']['mean'] / 1e12:.2f} T",
                percent_spread(point["validation_accuracy"], bold=False),
                percent_spread(point["accuracy"]),
            )
            for point in entry["points"]
        ]
        published = [
            (name, f"{each['params']:,}", f"{100 - each['error']:.2f}%") for name, each in entry["published"].items()
        ]
        lines += [f"## {entry['title']}", "", markdown_table(header, rows), ""]
        lines += [markdown_table(("published", "weights", "test accuracy"), published), ""]
        lines += difference_lines(entry["differences"], "### Differences")
    return "\n".join(
        [
            *lines,
            "Weights are counted without biases; MACs at the end count open weights. Accuracy is that of the last "
            "epoch, mean and standard deviation over the seeds; 55,000 training images, and 5,000 for validation, "
            "which decided the settings on a seed of its own, 100. A training step counts as three forward passes with "
            "all weights. Published figures are as Molchanov, Ashukha and Vetrov collect them, Variational Dropout "
            "Sparsifies Deep Neural Networks, ICML 2017.",
            "",
            made_by(summary, per=" a run"),
            "",
        ]
    )


@figures.styled
def draw(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Draw error over weights, a panel for each network, beside published points.

    Args:
        path: of the PNG.
        entries: networks of the JSON file.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, len(entries), 4.4 * len(entries), 3.6)
    for axis, entry in zip(axes[0], entries, strict=True):
        shown = [point for point in entry["points"] if point["mode"] != "scratch"]  # far above all others
        for point in shown:
            number = list(LABELS).index(point["mode"])
            error, half = 100 * (1 - point["accuracy"]["mean"]), 100 * point["accuracy"]["std"]
            how = {"color": figures.COLOURS[number], "marker": "o", "ms": 5, "capsize": 2, "ls": ""}
            axis.errorbar(point["params"]["mean"], error, half, label=LABELS[point["mode"]], **how)
        for name, each in entry["published"].items():
            figures.named_point(axis, name, each["params"], each["error"])
        axis.set(xscale="log", title=entry["title"], xlabel="weights that are left", ylabel="test error in %")
        axis.margins(0.2)
        figures.plain_log_ticks(axis)
        axis.legend(loc="lower right", fontsize=7.5)  # published points lie above
    return figures.save(figure, path)
