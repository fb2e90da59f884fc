"""The files of `npn bench estimators`: JSON, tables and one figure."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from npn.experiments.engine.bench import result_files
from npn.experiments.engine.rundir import write_json
from npn.experiments.report import figures
from npn.experiments.report.provenance import made_by
from npn.experiments.report.tables import markdown_table, number_spread, percent, percent_spread

Summary = Mapping[str, Any]
MARKERS = {"equal epochs": "o", "equal time": "^"}


def write(out: Path, summary: Summary) -> list[Path]:
    """Write `out` with the endings .json, .md and .png.

    Args:
        out: path without ending.
        summary: content of the JSON file.

    Returns:
        The files written.
    """
    files = result_files(out)
    write_json(files[0], summary)
    draw(files[2], summary)
    files[1].write_text(page(summary, files[2].name), encoding="utf-8")
    return files


def page(summary: Summary, picture: str) -> str:
    """Write the Markdown page: the tables, and the record of how they were made.

    Args:
        summary: content of the JSON file.
        picture: name of the figure.
    """
    how = summary["settings"]
    lines = ["# Gradient estimators on LeNet-5", "", "## One gradient", ""]
    for moment, found in summary["moments"].items():
        lines += [*_moment(moment, found), ""]
    lines += [
        f"Each row: {how['draws']:,} single draws on {_batches(how['batches'])} of {found['batch_size']} training "
        "images, weights and gates fixed, train mode, the penalty left out. `cosine` is the mean over single draws of "
        "the cosine to the reference, `variance` the trace of the covariance over the squared norm of the gradient; "
        "`bias` is |mean of the single draws - reference| over that norm, and chance alone gives `floor`; beyond "
        "chance is what exceeds it, 0 where that is less than two standard errors. `step` is a "
        "whole training step over one of the same net without gates, medians of "
        f"{how['rounds']} interleaved measurements. The net was trained with {summary['trained_by']}.",
        "",
        "### By group",
        "",
        "Cosine and variance of the part that belongs to one group.",
        "",
        _groups(summary),
        "",
        "## What the networks come to",
        "",
        _ends(summary),
        "",
        "Accuracy is that of the last epoch on the test data, which steer nothing. Spread is the standard deviation "
        "over the seeds. For equal time the plastic stage, the only one that uses an estimator, is shorter by the "
        "ratio of `step`, mean of the three moments. Seconds hold whatever else the machine did meanwhile.",
        "",
        markdown_table(
            ["protocol", "estimator", "seed", "epochs", "test accuracy", "parameters", "architecture", "seconds"],
            [
                [
                    *(row[key] for key in ("protocol", "estimator", "seed", "epochs")),
                    percent(row["accuracy"]),
                    f"{row['params']:,}",
                    row["architecture"],
                    f"{row['seconds']:.0f}",
                ]
                for row in summary["runs"]
            ],
        ),
        "",
        made_by(summary),
        "",
        f"![{picture}]({picture})",
    ]
    return "\n".join(lines) + "\n"


def _batches(count: int) -> str:
    return "one batch" if count == 1 else f"each of {count} batches"


def _moment(moment: str, found: Mapping[str, Any]) -> Iterable[str]:
    """Write a heading, the reference, and one row per estimator."""
    units = "-".join(map(str, found["physical_units"].values()))
    quality = found["quality"]
    errors = next(iter(quality.values()))["all"]
    yield f"### {moment.capitalize()} of the plastic stage: {units} units, {found['params']:,} parameters open"
    yield ""
    reference = found["reference"]
    used = ", ".join(sorted(set(reference["estimator"])))
    yield (
        f"Reference: mean of {reference['draws']:,} other draws of {used}; its "
        f"standard error is {_number(errors['reference_error'])} of the gradient's norm, so that the true gradient "
        f"itself would have a cosine of {_number(errors['ceiling'])}."
    )
    yield ""
    rows = []
    for name, groups in quality.items():
        every, step = groups["all"], found["step"][name]
        rows.append(
            [
                name,
                *(_number(every[key]) for key in ("cosine", "variance", "bias", "floor", "excess")),
                f"{step['median']:.2f}",
                f"{1e3 * step['seconds']:.1f}",
            ]
        )
    dense = found["step"]["dense"]
    rows.append(["dense", *5 * ["-"], f"{dense['median']:.2f}", f"{1e3 * dense['seconds']:.1f}"])
    yield markdown_table(
        ["estimator", "cosine", "variance", "bias", "floor", "bias beyond chance", "step", "ms per step"], rows
    )


def _groups(summary: Summary) -> str:
    moments = summary["moments"]
    names = list(next(iter(moments.values()))["quality"])
    rows = []
    for group in next(iter(moments.values()))["physical_units"]:
        for name in names:
            parts = [found["quality"][name][group] for found in moments.values()]
            cells = [f"{_number(part['cosine'])} / {_number(part['variance'])}" for part in parts]
            rows.append([f"{group}, {name}", *cells])
    return markdown_table(["cosine / variance", *moments], rows)


def _ends(summary: Summary) -> str:
    rows = []
    for protocol, estimators in summary["ends"].items():
        for name, entry in estimators.items():
            accuracy, params, seconds = (entry[key] for key in ("accuracy", "params", "seconds"))
            rows.append(
                [
                    protocol,
                    name,
                    entry["epochs"],
                    entry["runs"],
                    percent_spread(accuracy, bold=False),
                    number_spread(params),
                    number_spread(seconds),
                ]
            )
    header = ["protocol", "estimator", "epochs", "runs", "test accuracy", "parameters", "seconds"]
    return markdown_table(header, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


@figures.styled
def draw(path: Path, summary: Summary) -> Path:
    """Draw cosine and variance at the three moments, and accuracy over size.

    Args:
        path: of the PNG.
        summary: content of the JSON file.

    Returns:
        The path.
    """
    figure, axes = figures.canvas(1, 3, 12.0, 3.6)
    moments = summary["moments"]
    names = list(next(iter(moments.values()))["quality"])
    colours = dict(zip(names, figures.COLOURS, strict=True))
    for axis, key in zip(axes[0], ("cosine", "variance"), strict=False):
        for name in names:
            values = [found["quality"][name]["all"][key] for found in moments.values()]
            measured = [float("nan") if value is None else value for value in values]
            axis.plot(list(moments), measured, marker="o", ms=4, color=colours[name], label=name)
        axis.set(xlabel="moment of the plastic stage")
    axes[0, 0].set(ylabel="cosine of one draw to the gradient", ylim=(min(0.0, axes[0, 0].get_ylim()[0]), 1.0))
    axes[0, 1].set(ylabel="variance / |gradient|²", yscale="log")
    _sizes(axes[0, 2], summary, colours)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return figures.save(figure, path)


def _sizes(axis: Axes, summary: Summary, colours: Mapping[str, Any]) -> None:
    """Draw mean and standard deviation of accuracy over those of size, one marker per protocol."""
    for protocol, estimators in summary["ends"].items():
        for name, entry in estimators.items():
            accuracy = entry["accuracy"]
            axis.errorbar(
                entry["params"]["mean"],
                100 * accuracy["mean"],
                yerr=100 * accuracy["std"],
                xerr=entry["params"]["std"],
                fmt=MARKERS[protocol],
                color=colours[name],
                ms=5,
                lw=0.8,
            )
        axis.plot([], [], MARKERS[protocol], color="0.4", label=protocol)
    axis.set(xlabel="weights left", ylabel="test accuracy in %")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.locator_params(axis="x", nbins=4)
    axis.legend(loc="lower right", fontsize=8)
