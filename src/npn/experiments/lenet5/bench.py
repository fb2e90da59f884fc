"""LeNet-5 over budgets and seeds: parameters against error, beside published results, as files of `results/`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npn.experiments.engine.campaign import Train, finished, planned, run_name
from npn.experiments.engine.options import Options
from npn.experiments.engine.rundir import write_json
from npn.experiments.lenet5 import recipe as lenet5
from npn.experiments.report import figures
from npn.experiments.report.tables import command_line, common, made_by, markdown_table, percent, spread

Result = Mapping[str, Any]

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
SHOWN = ("sparsify", "expand")  # a run of each, to the paper's size
PICTURES = ("curves.png", "filters.png")
BUDGETS: dict[str, tuple[float | None, ...]] = {
    "sparsify": (1600, 2750, 3800, 5320),
    "expand": (1000, 2304),
    "scratch": (1600, 2750, 5320),
    "dense": (None,),
}
LABELS = {
    "sparsify": "npn, shrunk from 20-50-800-500",
    "expand": "npn, grown from 3-3-48-3",
    "scratch": "plain nets from scratch, as long, same optimizer",
    "dense": "full net, same optimizer",
}


def bench(
    out: Path,
    runs: Path,
    options: Options,
    seeds: Sequence[int],
    modes: Sequence[str],
    budgets: Sequence[float] | None,
    train: Train,
) -> list[Path]:
    """Train every mode to every budget with every seed, and write `out` with the endings .json, .md and .png.

    What `runs` holds already is not made again, so that a stopped bench goes on where it was.

    Args:
        out: path without ending.
        runs: folder of the single runs.
        options: of every run but for mode, seed and budget.
        seeds, modes: to train with.
        budgets: of every mode but "dense"; None for those of `BUDGETS`.
        train: trains an experiment with options in a folder, resuming if told to.

    Raises:
        ConfigurationError: an unknown mode, or `runs` holds runs with other settings.
    """
    offered = {mode: budgets if budgets and mode != "dense" else own for mode, own in BUDGETS.items()}
    results, shown = [], {}
    for each in planned(options, lenet5.STAGES, seeds, modes, offered):
        folder = runs / run_name(each)
        results.append(finished(folder, lenet5.EXPERIMENT, each, train).result())
        if each.seed == seeds[0] and each.mode in SHOWN and each.budget == lenet5.BUDGET[each.mode]:
            shown[f"{each.mode}, seed {each.seed}"] = folder
    return write(out, results, shown)


def write(out: Path, results: Sequence[Result], shown: Mapping[str, Path]) -> list[Path]:
    """Write `out` with the endings .json, .md and .png, and beside it the pictures of single runs.

    Args:
        out: path without ending.
        results: contents of `result.json` of finished runs of any modes, budgets and seeds.
        shown: title -> folder of a run whose Table I, learning curves and filters go into the page.

    Returns:
        The files written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    first = results[0]
    summary: dict[str, Any] = {
        "experiment": "lenet5-mnist",
        "points": points(results),
        "published": {name: {"params": params, "error": error} for name, (params, error) in PUBLISHED.items()},
        "command": command_line(),
        "options": {k: v for k, v in first["options"].items() if k not in ("mode", "seed", "budget", "data")},
        "versions": common([result["versions"] for result in results]),
        "machine": common([result["machine"] for result in results]),
    }
    files = [out.with_suffix(ending) for ending in (".json", ".md", ".png")]
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


def points(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One entry per mode and budget, with the spread over its seeds, in the modes' order and by size."""
    kinds: dict[tuple[str, float | None], list[Result]] = {}
    for result in results:
        kinds.setdefault((result["mode"], result["options"]["budget"]), []).append(result)
    order = sorted(kinds, key=lambda kind: (list(LABELS).index(kind[0]), kind[1] or 0.0))
    return [
        {
            "mode": mode,
            "budget": budget,
            "runs": len(runs),
            **{key: spread([run[key] for run in runs]) for key in ("accuracy", "params", "params_with_biases", "macs")},
            "seconds": spread([run["seconds"] for run in runs]),
            "epochs": sum(stage["epochs"] for stage in runs[0]["stages"]),
            "seeds": [{key: run[key] for key in ("seed", "accuracy", "params", "architecture")} for run in runs],
        }
        for mode, budget in order
        for runs in [sorted(kinds[mode, budget], key=lambda run: int(run["seed"]))]
    ]


def page(summary: Mapping[str, Any], picture: str, runs: Sequence[str] = ()) -> str:
    """The Markdown page: every point, every seed, the paper beside them, and how it was made.

    Args:
        summary: see `write`.
        picture: name of the figure.
        runs: lines about single runs.
    """
    header = ("mode", "budget", "epochs", "seeds", "weights", "with biases", "MACs", "test accuracy", "architectures")
    rows = [
        (
            point["mode"],
            _budget(point),
            point["epochs"],
            point["runs"],
            f"{point['params']['mean']:,.0f}",
            f"{point['params_with_biases']['mean']:,.0f}",
            f"{point['macs']['mean']:,.0f}",
            f"**{percent(point['accuracy']['mean'])}** ± {100 * point['accuracy']['std']:.2f}",
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
            "exported network at the last epoch, mean and standard deviation over the seeds; no data augmentation, "
            "55,000 training images. Within a run the 5,000 validation images steer growth and the test images "
            "nothing; how the recipe was found is told in docs/lenet5.md.",
            "",
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
    """Weights, or a share of them."""
    budget = point["budget"]
    return "" if budget is None else f"{budget:,.0f}" if budget > 1 else f"{budget:g}"


@figures.styled
def draw(path: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Error over parameters: a line per mode with its seeds' spread, and the published points."""
    figure, axes = figures.canvas(1, 1, 7.6, 4.6)
    axis = axes[0, 0]
    for colour, (mode, label) in zip(figures.COLOURS, LABELS.items(), strict=False):
        chosen = [entry for entry in entries if entry["mode"] == mode]
        if not chosen:
            continue
        if mode == "dense":
            error = 100 * (1 - chosen[0]["accuracy"]["mean"])
            params = chosen[0]["params"]["mean"]
            axis.axhline(error, color="0.55", lw=1.0, ls=":", label=f"{label} ({params:,.0f} weights)")
            continue
        sizes = [entry["params"]["mean"] for entry in chosen]
        errors = [100 * (1 - entry["accuracy"]["mean"]) for entry in chosen]
        spreads = [100 * entry["accuracy"]["std"] for entry in chosen]
        axis.errorbar(sizes, errors, spreads, color=colour, marker="o", ms=4, capsize=2, lw=1.2, label=label)
    for name, (params, error) in PUBLISHED.items():
        own = name.startswith("NPN")
        axis.plot(params, error, marker="*" if own else "x", ms=9 if own else 6, color="0.25", ls="")
        offset = (-6, 4) if name == "BC-GHS" else (5, 4)
        axis.annotate(
            name, (params, error), textcoords="offset points", xytext=offset, fontsize=7.5,
            ha="right" if name == "BC-GHS" else "left",
        )  # fmt: skip
    axis.set(xscale="log", xlabel="weights without biases", ylabel="test error in %")
    axis.legend(loc="upper right", fontsize=8)
    return figures.save(figure, path)
