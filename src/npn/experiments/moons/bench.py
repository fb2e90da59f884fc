"""Both modes of the two moons over several seeds, beside the paper's numbers, as files of `results/`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from npn.experiments.engine.bench import result_files
from npn.experiments.engine.campaign import Train
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Outcome
from npn.experiments.engine.rundir import make_folder, write_json
from npn.experiments.moons.figures import boundaries, sizes
from npn.experiments.moons.recipe import EXPERIMENT, STAGES
from npn.experiments.report.provenance import command_line, made_by, versions
from npn.experiments.report.tables import percent, ratio, seeds_table, summarise

Outcomes = Mapping[str, Sequence[Outcome]]  # mode -> one per seed
PAPER = {"sparsify": {"params": 3234, "accuracy": 0.990}, "expand": {"params": 3300, "accuracy": 0.996}}


def bench(out: Path, runs: Path, options: Options, seeds: Sequence[int], train: Train) -> list[Path]:
    """Train both modes with every seed, and write the files of `write`.

    Args:
        out: path without ending.
        runs: folder of the single runs; runs that it holds are deleted and trained again.
        options: settings of every run, without mode and seed.
        seeds: to train with.
        train: trains one run.

    Returns:
        The files written.
    """
    make_folder(out.parent)
    outcomes: dict[str, list[Outcome]] = {mode: [] for mode in STAGES}
    for mode, made in outcomes.items():
        for seed in seeds:
            init = options.growth_init if mode == "expand" else None
            chosen = replace(options, mode=mode, seed=seed, growth_init=init)
            made.append(train(EXPERIMENT, chosen, runs / f"{mode}-{seed}", False))
    return write(out, outcomes)


def write(out: Path, outcomes: Outcomes) -> list[Path]:
    """Write `out` with the endings .json, .md, .png and -sizes.png.

    Args:
        out: path without ending.
        outcomes: finished runs of both modes.

    Returns:
        The files written.
    """
    modes = {mode: summarise([outcome.result for outcome in runs]) for mode, runs in outcomes.items()}
    first = next(iter(outcomes.values()))[0].result
    summary = {
        "experiment": "moons",
        "modes": modes,
        "size_ratio": ratio(*(entry["params"]["mean"] for entry in modes.values())),
        "paper": PAPER,
        "command": command_line(),
        "options": {key: value for key, value in first["options"].items() if key not in ("mode", "seed")},
        "versions": versions(),
        "machine": first["machine"],
    }
    files = [*result_files(out), out.with_name(f"{out.name}-sizes.png")]
    write_json(files[0], summary)
    boundaries(files[2], [runs[0] for runs in outcomes.values()])
    sizes(files[3], outcomes, PAPER)
    files[1].write_text(_page(summary, [file.name for file in files[2:]]), encoding="utf-8")
    return files


def _page(summary: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """Write the Markdown page: every seed, the means, the paper beside them, and the record of how it was made."""
    modes = summary["modes"]
    lines = ["# Two moons", "", seeds_table(modes), ""]
    for mode, entry in modes.items():
        paper = PAPER[mode]
        times = ratio(paper["params"], entry["params"]["mean"])
        lines.append(
            f"- Paper, {mode}: {paper['params']:,} parameters at {percent(paper['accuracy'], 1)}, "
            f"{times:,.0f} times as many."
        )
    lines += [
        f"- The two modes' mean sizes differ by a factor {summary['size_ratio']:.2f}.",
        "",
        "Parameters are the weights of the two trained layers without biases, as the paper counts. The test data steer "
        "nothing; accuracy is that of the last epoch, of the exported network. Spread is the standard deviation over "
        "the seeds; each seed draws its own data, weights and masks.",
        "",
        made_by(summary),
        "",
        *(f"![{picture}]({picture})" for picture in pictures),
    ]
    return "\n".join(lines) + "\n"
