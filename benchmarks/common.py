"""Shared parts of the benchmarks: options, the record of command and machine, files, networks."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npn.experiments.engine.rundir import write_json
from npn.experiments.lenet5.model import LeNet5
from npn.experiments.report.provenance import machine, made_by, versions
from npn.experiments.report.tables import markdown_table

BATCH_SIZE = 128
DENSE_LENET5 = "20-50-800-500"


def parser(description: str | None, name: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """Make a parser with the options of every benchmark, `--threads` and `--out`, and some of its own.

    Args:
        description: of the benchmark.
        name: of the files that it writes by default.
        numbers: option -> `(default, help)`; whole numbers.
    """
    made = argparse.ArgumentParser(description=description)
    for option, (default, help_) in numbers.items():
        made.add_argument(f"--{option}", type=int, default=default, help=f"{help_} [default: {default}]")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    out = Path("results") / name
    made.add_argument("--out", type=Path, default=out, help=f"results go to OUT.json and OUT.md [default: {out}]")
    return made


def environment(device: str = "cpu") -> dict[str, Any]:
    """Record command, versions, processor and threads.

    Args:
        device: that the times are measured on.
    """
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "versions": versions(), "machine": machine(device)}


def write(
    out: Path, title: str, measured: Mapping[str, Any], tables: Sequence[str], notes: Sequence[str], device: str = "cpu"
) -> list[Path]:
    """Write OUT.json with the environment, and OUT.md with tables and notes.

    Args:
        out: path without ending.
        title: of the page.
        measured: content of the JSON file.
        tables: in Markdown.
        notes: paragraphs below the tables.
        device: that the times were measured on.

    Returns:
        The two files.
    """
    about = environment(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_suffix(".json"), out.with_suffix(".md")]
    write_json(files[0], {**about, **measured})
    files[1].write_text("\n\n".join([f"# {title}", *tables, *notes, made_by(about)]) + "\n", encoding="utf-8")
    return files


def timing_table(timings: Mapping[str, Mapping[str, float]], first: str, **more: Mapping[str, str]) -> str:
    """Write a table with one row per name: median ratio, quartiles, milliseconds, and further columns.

    Args:
        timings: name -> summary of a `Timing`.
        first: title of the first column.
        more: title of a further column -> name -> cell.
    """
    header = [first, "ratio", "quartiles", "ms", *more]
    rows = [
        [
            name,
            f"{row['median']:.2f}",
            f"{row['quartile_low']:.2f}-{row['quartile_high']:.2f}",
            f"{1e3 * row['seconds']:.2f}",
            *(column.get(name, "-") for column in more.values()),
        ]
        for name, row in timings.items()
    ]
    return markdown_table(header, rows)


def lenet5(architecture: str = DENSE_LENET5) -> LeNet5:
    """Make a LeNet-5.

    Args:
        architecture: widths as a run prints them: channels, channels, inputs of the first linear layer, hidden units.

    Raises:
        SystemExit: the widths do not fit together.
    """
    try:
        first, second, flat, hidden = map(int, architecture.split("-"))
    except ValueError:
        flat = second = -1
    if flat != 16 * second:
        raise SystemExit(f"expected an architecture such as {DENSE_LENET5}, where 800 = 16 * 50, got {architecture!r}")
    return LeNet5(first, second, hidden)


def batch(size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """Draw random images (size, 1, 28, 28) and classes; times do not depend on the pixels.

    Args:
        size: number of images.
    """
    return torch.randn(size, 1, 28, 28), torch.randint(0, 10, (size,))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Make a function that does an ordinary training step.

    Args:
        model: to train.
        optimizer: of the model.
        x: inputs.
        y: classes.
    """

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step
