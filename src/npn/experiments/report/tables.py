"""Where and with what a result was made, and how the results of several seeds become one table."""

import math
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from npn.errors import ConfigurationError

Result = Mapping[str, Any]
PACKAGES = ("npn", "torch", "numpy", "scikit-learn")
THREADS = "OMP_NUM_THREADS"  # part of a command: times depend on it, and in the last digits results do


def command_line() -> str:
    """The command that started this process, as a user would type it."""
    program = Path(sys.argv[0]).name
    command = shlex.join(["npn" if program in ("npn", "__main__.py") else program, *sys.argv[1:]])
    threads = os.environ.get(THREADS)
    return command if threads is None else f"{THREADS}={shlex.quote(threads)} {command}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a time was measured on."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def common(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs were made with; where they differ, all of it.

    Example:
        >>> common([{"torch": "2.12", "cores": 2}, {"torch": "2.13", "cores": 2}])
        {'torch': '2.12 / 2.13', 'cores': 2}
    """
    values = {name: list(dict.fromkeys(entry.get(name) for entry in entries)) for name in entries[0]}
    return {name: found[0] if len(found) == 1 else " / ".join(map(str, found)) for name, found in values.items()}


def made_by(summary: Mapping[str, Any], per: str = "") -> str:
    """The line that says how a page was made.

    Args:
        summary: with `command`, `machine` and `versions`, as the functions here give them.
        per: what has so many threads, if not the command: " a run".
    """
    used = summary["machine"]
    made_with = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return (
        f"Made by `{summary['command']}` on {used['processor']}, {used['cores']} cores, "
        f"{used['threads']} threads{per}, device {used['device']}, with {made_with}."
    )


def _processor() -> str:
    """The processor's name; Linux keeps it where `platform` does not look."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if named:
            return named.group(1)
    return platform.processor() or "unknown"


def parse_seeds(text: str) -> list[int]:
    """Seeds from a list of numbers and ranges.

    Raises:
        ConfigurationError: not numbers and ranges separated by commas.

    Example:
        >>> parse_seeds("0-2,7")
        [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigurationError(f'seeds must be numbers and ranges separated by commas, as "0-4,7", got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        seeds += range(first, last + 1)
    if not seeds:
        raise ConfigurationError(f"no seed in {text!r}: a range runs upwards")
    return seeds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation of a sample (0 for a single value), least and greatest."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Several seeds of one experiment and mode as one entry: spreads, and what each seed reached.

    Args:
        results: contents of `result.json`, at least one.
    """
    keys = ("accuracy", "params", "seconds")
    return {
        "runs": len(results),
        **{key: spread([result[key] for result in results]) for key in keys},
        "seeds": [
            {key: result[key] for key in ("seed", *keys, "params_with_biases", "macs", "architecture")}
            for result in results
        ],
    }


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage.

    Example:
        >>> percent(0.994)
        '99.40%'
    """
    return f"{100 * share:.{digits}f}%"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; all columns but the first are right-aligned.

    Example:
        >>> print(markdown_table(["mode", "params"], [["expand", 24]]))
        | mode | params |
        | --- | ---: |
        | expand | 24 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def seeds_table(modes: Mapping[str, Mapping[str, Any]]) -> str:
    """Every seed of every mode, and each mode's mean with its standard deviation, in Markdown."""
    rows: list[list[object]] = []
    for mode, entry in modes.items():
        for seed in entry["seeds"]:
            rows.append(
                [
                    mode,
                    seed["seed"],
                    percent(seed["accuracy"]),
                    seed["params"],
                    seed["architecture"],
                    f"{seed['seconds']:.1f}",
                ]
            )
        accuracy, params, seconds = (entry[key] for key in ("accuracy", "params", "seconds"))
        rows.append(
            [
                f"**{mode}**",
                f"n = {entry['runs']}",
                f"**{percent(accuracy['mean'])}** ± {100 * accuracy['std']:.2f}",
                f"**{params['mean']:.1f}** ± {params['std']:.1f}",
                "",
                f"{seconds['mean']:.1f} ± {seconds['std']:.1f}",
            ]
        )
    return markdown_table(["mode", "seed", "test accuracy", "parameters", "architecture", "seconds"], rows)


def ratio(first: float, second: float) -> float:
    """How many times the larger of two sizes exceeds the smaller, at least 1."""
    return math.inf if min(first, second) <= 0 else max(first, second) / min(first, second)
