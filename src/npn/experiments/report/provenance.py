"""The record of how a result was made: command, versions and machine."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import npn

PACKAGES = ("numpy", "scikit-learn")  # beside npn and torch, which say themselves what they are: 2.13.0+cpu
THREADS = "OMP_NUM_THREADS"  # part of a command: times depend on it, and in the last digits results do


def command_line() -> str:
    """Return the command that started this process, as a user would type it."""
    program = Path(sys.argv[0]).name
    command = shlex.join(["npn" if program in ("npn", "__main__.py") else program, *sys.argv[1:]])
    threads = os.environ.get(THREADS)
    return command if threads is None else f"{THREADS}={shlex.quote(threads)} {command}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "npn": npn.__version__, "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine that a time was measured on.

    Args:
        device: as `torch.device` takes it.
    """
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
    """Merge the versions or machines of several runs; where they differ, list all of them.

    Args:
        entries: one mapping per run, with the same names.

    Example:
        >>> common([{"torch": "2.12", "cores": 2}, {"torch": "2.13", "cores": 2}])
        {'torch': '2.12 / 2.13', 'cores': 2}
    """
    values = {name: list(dict.fromkeys(entry.get(name) for entry in entries)) for name in entries[0]}
    return {name: found[0] if len(found) == 1 else " / ".join(map(str, found)) for name, found in values.items()}


def made_by(summary: Mapping[str, Any], per: str = "", first: str = "Made by") -> str:
    """Write the line that says how a page was made.

    Args:
        summary: with `command`, `machine` and `versions`, as the functions here give them.
        per: unit that the number of threads refers to, if not the command: " a run".
        first: words before the command.
    """
    used = summary["machine"]
    made_with = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return (
        f"{first} `{summary['command']}` on {used['processor']}, {used['cores']} cores, "
        f"{used['threads']} threads{per}, device {used['device']}, with {made_with}."
    )


def _processor() -> str:
    """Return the processor's name, which Linux keeps where `platform` does not look."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if named:
            return named.group(1)
    return platform.processor() or "unknown"
