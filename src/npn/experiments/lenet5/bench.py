"""LeNet-5 over modes, budgets and seeds: error over parameters, beside published results, as files of `results/`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npn.experiments.engine.bench import difference_lines, differences, made_with, points, result_files
from npn.experiments.engine.campaign import Campaign, Train
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import make_folder, write_json
from npn.experiments.lenet5.arms import ARMS, COMPARED, LABELS
from npn.experiments.lenet5.recipe import BUDGET, EXPERIMENT, STAGES
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import Result, markdown_table, percent, percent_spread

# name -> (weights, test error in percent); as collected in Table I of Li & Ji (2021)
PUBLISHED = {
    "SparseVD": (39_600, 0.75),
    "SBP": (84_900, 0.86),
    "BC-GNJ": (4_100, 1.0),
    "BC-GHS": (2_800, 1.0),
    "L0-HC": (38_900, 0.9),
    "L0-HC-sep": (6_200, 1.0),
    "NPN sparsify": (5_320, 1.09),
    "NPN expand": (2_304, 1.69),
}
FULL_NETS = ("dense", "dense-augmented")  # too large for the picture
SHOWN = ("sparsify", "expand")  # modes of which the page shows a run to the paper's size
VARIED = ("mode", "seed", "budget", "data", "epochs", "augment", "teacher", "like", "weight_decay", "growth_init",
          "overshoot")  # fmt: skip
PICTURES = ("curves.png", "filters.png")


def bench(
    out: Path,
    runs: Path,
    options: Options,
    seeds: Sequence[int],
    modes: Sequence[str],
    budgets: Sequence[float] | None,
    train: Train,
) -> list[Path]:
    """Train every mode to every budget with every seed, and write the files of `write`.

    Finished runs in `runs` are used as they are, and a stopped one is resumed.

    Args:
        out: path without ending.
        runs: folder of the single runs.
        options: settings of every run, without mode, seed and budget.
        seeds: to train with.
        modes: names of `ARMS`.
        budgets: of every arm that has some; None for its own.
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown mode, or `runs` holds runs with other settings.
    """
    make_folder(out.parent)
    arms = {
        name: replace(arm, budgets=budgets) if budgets and arm.budgets != (None,) else arm for name, arm in ARMS.items()
    }
    made = Campaign(runs, EXPERIMENT, options, STAGES, arms, train).trained(seeds, modes)
    results = [{**run.result(), "mode": name} for name, run in made]
    shown = {
        f"{name}, seed {seeds[0]}": run.path
        for (name, run), result in zip(made, results, strict=True)
        if name in SHOWN and result["seed"] == seeds[0] and result["options"]["budget"] == BUDGET[name]
    }
    return write(out, results, shown)


def write(out: Path, results: Sequence[Result], shown: Mapping[str, Path]) -> list[Path]:
    """Write `out` with the endings .json, .md and .png, and copy the figures of single runs beside them.

    Args:
        out: path without ending.
        results: contents of `result.json` of finished runs of any modes, budgets and seeds.
        shown: title -> folder of a run; the page shows its Table I, learning curves and filters.

    Returns:
        The files written.
    """
    summary: dict[str, Any] = {
        "experiment": "lenet5-mnist",
        "points": points(results, tuple(ARMS)),
        "differences": differences(results, COMPARED),
        "published": {name: {"params": params, "error": error} for name, (params, error) in PUBLISHED.items()},
        **made_with(results, different=VARIED),
    }
    files = result_files(out)
    write_json(files[0], summary)
    draw(files[2], summary["points"])
    parts, pictures = [], []
    for title, folder in shown.items():
        mine = [
            Path(shutil.copyfile(folder / file, out.with_name(f"{out.name}-{title.split(',')[0]}-{file}")))
            for file in PICTURES
        ]
        parts += [f"## {title[0].upper()}{title[1:]}", "", (folder / "table.md").read_text(encoding="utf-8")]
        parts += [line for file in mine for line in (f"![{title}]({file.name})", "")]
        pictures += mine
    files[1].write_text(page(summary, files[2].name, parts), encoding="utf-8")
    return files + pictures


def page(summary: Mapping[str, Any], picture: str, runs: Sequence[str] = ()) -> str:
    """Write the Markdown page: every point, published results, every seed, and the record of how it was made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
        runs: lines about single runs.
    """
    header = (
        "mode", "budget", "epochs", "seeds", "weights", "with biases", "MACs", "training MACs", "validation", "test",
        "architectures",
    )  # fmt: skip
    rows = [
        (
            point["mode"],
            _budget(point),
            point["epochs"],
            point["runs"],
            f"{point['params']['mean']:,.0f}",
            f"{point['params_with_biases']['mean']:,.0f}",
            f"{point['macs']['mean']:,.0f}",
            f"{point['training_macs']['mean'] / 1e12:.2f} T",
            percent_spread(point["validation_accuracy"], bold=False),
            percent_spread(point["accuracy"]),
            ", ".join(seed["architecture"] for seed in point["seeds"]),
        )
        for point in summary["points"]
    ]
    singles = [
        (
            f"{p['mode']} {_budget(p)}".strip(),
            s["seed"],
            percent(s["accuracy"]),
            f"{s['params']:,}",
        )
        for p in summary["points"]
        for s in p["seeds"]
    ]
    published = [(name, f"{params:,}", f"{100 - error:.2f}%") for name, (params, error) in PUBLISHED.items()]
    return "\n".join(
        [
            "# LeNet-5 on MNIST: parameters against error",
            "",
            f"![Parameters against test error]({picture})",
            "",
            markdown_table(header, rows),
            "",
            "Weights are counted without biases, as the paper does; the budget counts them. Accuracy is that of the "
            "exported network at the last epoch, mean and standard deviation over the seeds; no data augmentation but "
            "where it is named, 55,000 training images. A training step counts as three forward passes. Within a run "
            "the 5,000 validation images steer growth and the test images nothing; how the recipe was found is told in "
            "docs/lenet5.md.",
            "",
            *(f"- {name}: {LABELS[name]}" for name in dict.fromkeys(point["mode"] for point in summary["points"])),
            "",
            *difference_lines(summary["differences"]),
            "## Published",
            "",
            markdown_table(("method", "weights", "test accuracy"), published),
            "",
            "As collected in Li & Ji, Neural Plasticity Networks, IJCNN 2021, Table I.",
            "",
            *runs,
            "## Every run",
            "",
            markdown_table(("run", "seed", "test accuracy", "weights"), singles),
            "",
            made_by(summary, per=" a run"),
            "",
        ]
    )


def _budget(point: Mapping[str, Any]) -> str:
    """Write a budget: weights, or a share of them."""
    budget = point["budget"]
    return "" if budget is None else f"{budget:,.0f}" if budget > 1 else f"{budget:g}"


@figures.styled
def draw(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Draw error over parameters: a line per mode with the spread of its seeds, and the published points.

    Args:
        path: of the PNG.
        entries: see `points`.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 1, 7.6, 4.6)
    axis = axes[0, 0]
    for entry in (entry for entry in entries if entry["mode"] == "dense"):
        error, params = 100 * (1 - entry["accuracy"]["mean"]), entry["params"]["mean"]
        axis.axhline(error, color="0.55", lw=1.0, ls=":", label=f"{LABELS['dense']} ({params:,.0f} weights)")
    drawn = [mode for mode in LABELS if mode not in FULL_NETS and any(entry["mode"] == mode for entry in entries)]
    for number, mode in enumerate(drawn):
        colour, marker = figures.COLOURS[number % len(figures.COLOURS)], "os"[number // len(figures.COLOURS) % 2]
        chosen = [entry for entry in entries if entry["mode"] == mode]
        sizes = [entry["params"]["mean"] for entry in chosen]
        errors = [100 * (1 - entry["accuracy"]["mean"]) for entry in chosen]
        spreads = [100 * entry["accuracy"]["std"] for entry in chosen]
        axis.errorbar(sizes, errors, spreads, color=colour, marker=marker, ms=4, capsize=2, lw=1.2, label=LABELS[mode])
    for name, (params, error) in PUBLISHED.items():
        own = name.startswith("NPN")
        below = name == "BC-GHS"  # nets of that size lie to the left of it
        figures.named_point(axis, name, params, error, "*" if own else "x", 9 if own else 6, -10 if below else 4)
    axis.set(xscale="log", xlabel="weights without biases", ylabel="test error in %")
    axis.legend(loc="upper right", fontsize=8)
    return figures.save(figure, path)
