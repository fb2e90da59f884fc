"""The GPT over ways to train and seeds: loss against training MACs and against time, as files of `results/`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from npn.experiments.engine.bench import difference_lines, differences, made_with, point_title, points, result_files
from npn.experiments.engine.campaign import Campaign, Train
from npn.experiments.engine.rundir import RunDirectory, write_json
from npn.experiments.language.arms import COMPARED, LABELS, arms
from npn.experiments.language.options import LanguageOptions
from npn.experiments.language.recipe import EXPERIMENT, STAGES
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, number_spread, percent, spread

Run = tuple[Mapping[str, Any], figures.Rows]  # result, under the name of its arm, and measurements
VALIDATION = "validation_bits_per_byte"


def bench(
    out: Path,
    runs: Path,
    options: LanguageOptions,
    seeds: Sequence[int],
    names: Sequence[str],
    budgets: Sequence[float],
    train: Train,
) -> list[Path]:
    """Train every arm with every seed, and write the files of `write`.

    Finished runs in `runs` are used as they are, and a stopped one is resumed.

    Args:
        out: path without ending.
        runs: folder of the single runs.
        options: settings of every run, without mode, seed and budget.
        seeds: to train with; all arms of one before the next.
        names: of the arms; those that they depend on are trained as well.
        budgets: of the arms that shrink, and of plain nets.
        train: trains one run.

    Returns:
        The files written.

    Raises:
        ConfigurationError: an unknown arm, or `runs` holds runs with other settings.
    """
    result_files(out)
    return write(out, Campaign(runs, EXPERIMENT, options, STAGES, arms(budgets), train).trained(seeds, names))


def write(out: Path, made: Sequence[tuple[str, RunDirectory]]) -> list[Path]:
    """Write `out` with the endings .json, .md and .png.

    Args:
        out: path without ending.
        made: arm and folder of finished runs, all of one text and one full size.

    Returns:
        The files written.
    """
    runs: list[Run] = [({**run.result(), "mode": name}, run.metrics()) for name, run in made]
    results = [result for result, _ in runs]
    first, files = results[0], result_files(out)
    summary: dict[str, Any] = {
        "experiment": first["experiment"],
        **{key: first[key] for key in ("base", "width", "context", "text")},
        "points": points(results, tuple(LABELS)),
        "differences": differences(results, COMPARED),
        "reached": list(reached(runs)),
        **made_with(results, different=("mode", "seed", "budget", "epochs", "like", "growth_init")),
    }
    write_json(files[0], summary)
    draw(files[2], runs)
    files[1].write_text(page(summary, files[2].name), encoding="utf-8")
    return files


def reached(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Find when other arms reach the full net's last validation loss, of the same seed.

    Args:
        runs: results and measurements.

    Yields:
        For each arm but "dense", and each budget, the shares of the full net's training MACs and seconds, one entry
        per seed, None for a seed that does not reach it.
    """
    full = {result["seed"]: (result, rows) for result, rows in runs if result["mode"] == "dense"}
    paired = [run for run in runs if run[0]["mode"] != "dense" and run[0]["seed"] in full]
    arms = dict.fromkeys((result["mode"], result["options"]["budget"]) for result, _ in paired)
    for name, budget in sorted(arms, key=lambda arm: list(LABELS).index(arm[0])):
        others = [run for run in paired if (run[0]["mode"], run[0]["options"]["budget"]) == (name, budget)]
        shares: dict[str, list[float | None]] = {"macs": [], "seconds": []}
        for result, rows in others:
            theirs, their_rows = full[result["seed"]]
            there = (i for i, row in enumerate(rows) if row[VALIDATION] <= their_rows[-1][VALIDATION])
            epoch = next(there, None)
            for key, line, whole in (
                ("macs", spent(rows), theirs["training_macs"]),
                ("seconds", result["epochs_ended"], theirs["seconds"]),
            ):
                shares[key].append(None if epoch is None else line[epoch] / whole)
        yield {"mode": name, "budget": budget, "seeds": [result["seed"] for result, _ in others], **shares}


def spent(rows: figures.Rows) -> list[int]:
    """Add up the training MACs to the end of each epoch.

    Args:
        rows: measurements.
    """
    return list(accumulate(row["training_macs"] for row in rows))


def page(summary: Mapping[str, Any], picture: str) -> str:
    """Write the Markdown page: every arm, every seed, and the record of how it was made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
    """
    context, whole, text = summary["context"], summary["base"]["macs"], summary["text"]
    dense = next((point["training_macs"]["mean"] for point in summary["points"] if point["mode"] == "dense"), None)
    header = (
        "network", "epochs", "seeds", "MACs per byte", "of the full net", "training MACs",
        *(["of the full net's"] if dense else []), "validation bits per byte", "test bits per byte", "seconds",
    )  # fmt: skip
    rows = [
        (
            point_title(point, LABELS),
            point["epochs"],
            point["runs"],
            f"{point['macs']['mean'] / context / 1e6:.3f} M",
            percent(point["macs"]["mean"] / whole, 1),
            f"{point['training_macs']['mean'] / 1e12:.2f} T",
            *([percent(point["training_macs"]["mean"] / dense, 1)] if dense else []),
            number_spread(point[VALIDATION], 3, bold=True),
            number_spread(point["bits_per_byte"], 3, bold=True),
            number_spread(point["seconds"]),
        )
        for point in summary["points"]
    ]
    singles = [
        (
            point_title(point, LABELS),
            seed["seed"],
            f"{seed['bits_per_byte']:.3f}",
            f"{seed['params']:,}",
            seed["architecture"],
        )
        for point in summary["points"]
        for seed in point["seeds"]
    ]
    return "\n".join(
        [
            "# A GPT on bytes of text",
            "",
            f"![Loss against training MACs and against seconds]({picture})",
            "",
            markdown_table(header, rows),
            "",
            f"The text: {text['folder']}, {text['files']} files, split by file into "
            f"{', '.join(f'{size:,}' for size in text['bytes'])} bytes for training, validation and testing, sha256 "
            f"`{text['sha256']}`. The full net has {whole / context / 1e6:.3f} M MACs per byte in windows of {context} "
            "bytes, attention's products counted in full. Bits per byte are those of the exported network at the last "
            "epoch; mean and standard deviation over the seeds. Validation data steer growth, test data nothing. "
            "Seconds include an evaluation of both after each epoch, and whatever else the machine did meanwhile.",
            "",
            *_reached_lines(summary["reached"]),
            *difference_lines(summary["differences"]),
            "## Every run",
            "",
            markdown_table(("network", "seed", "test bits per byte", "weights", "heads (MLP units)"), singles),
            "",
            made_by(summary, per=" a run"),
            "",
        ]
    )


def _reached_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    if not entries:
        return []
    rows = []
    for entry in entries:
        there = {key: [share for share in entry[key] if share is not None] for key in ("macs", "seconds")}
        cells = [number_spread(spread(found), 2) if found else "" for found in there.values()]
        rows.append((point_title(entry, LABELS), f"{len(there['macs'])} of {len(entry['seeds'])}", *cells))
    return [
        "## Until the full net's last validation loss",
        "",
        markdown_table(("network", "seeds that reach it", "of its training MACs", "of its seconds"), rows),
        "",
    ]


@figures.styled
def draw(path: Path, runs: Sequence[Run]) -> Path:
    """Draw the validation loss over training MACs and over seconds: a line for each run, a colour for each arm.

    Args:
        path: of the PNG.
        runs: results and measurements.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 2, 11.0, 4.2, sharey=True)
    by_macs, by_time = axes[0]
    there = [name for name in LABELS if any(result["mode"] == name for result, _ in runs)]
    for number, name in enumerate(there):
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        style = "-" if number < len(figures.COLOURS) else "--"
        label: str | None = LABELS[name]
        for result, rows in (run for run in runs if run[0]["mode"] == name):
            bits = [row[VALIDATION] for row in rows]
            macs = [total / 1e12 for total in spent(rows)]
            by_macs.plot(macs, bits, style, color=colour, lw=1.0, label=label)
            by_time.plot([second / 60 for second in result["epochs_ended"]], bits, style, color=colour, lw=1.0)
            label = None  # one entry in the legend for all seeds and budgets
    lowest = min(row[VALIDATION] for _, rows in runs for row in rows)
    by_macs.set(xlabel="training MACs in 10¹²", ylabel="validation bits per byte", ylim=(0.97 * lowest, 1.6 * lowest))
    by_time.set(xlabel="minutes")
    by_macs.legend(loc="upper right", fontsize=8)
    return figures.save(figure, path)
