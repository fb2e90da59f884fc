"""What the benchmarks share: options, the record of where they ran, and their files."""

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
    """Options of every benchmark: threads, out, and whole numbers by name as `(default, help)`."""
    made = argparse.ArgumentParser(description=description)
    for option, (default, help_) in numbers.items():
        made.add_argument(f"--{option}", type=int, default=default, help=f"{help_} [default: {default}]")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    out = Path("results") / name
    made.add_argument("--out", type=Path, default=out, help=f"results go to OUT.json and OUT.md [default: {out}]")
    return made


def environment(device: str = "cpu") -> dict[str, Any]:
    """The command, versions, processor and threads: everything a time needs beside it."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "versions": versions(), "machine": machine(device)}


def write(
    out: Path, title: str, measured: Mapping[str, Any], tables: Sequence[str], notes: Sequence[str], device: str = "cpu"
) -> list[Path]:
    """Write OUT.json with the environment, and OUT.md with tables and notes.

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
    """One row per name: median ratio, quartiles, milliseconds, and what `more` says by column and name."""
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
    """LeNet-5 of the widths that a run prints: channels, channels, inputs of the first linear layer, hidden units.

    Raises:
        SystemExit: they do not fit together.
    """
    try:
        first, second, flat, hidden = map(int, architecture.split("-"))
    except ValueError:
        flat = second = -1
    if flat != 16 * second:
        raise SystemExit(f"expected an architecture such as {DENSE_LENET5}, where 800 = 16 * 50, got {architecture!r}")
    return LeNet5(first, second, hidden)


def batch(size: int = BATCH_SIZE) -> tuple[Tensor, Tensor]:
    """Random images (size, 1, 28, 28) and classes: times do not depend on what they show."""
    return torch.randn(size, 1, 28, 28), torch.randint(0, 10, (size,))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], None]:
    """An ordinary training step."""

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step
