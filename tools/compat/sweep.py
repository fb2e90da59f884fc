"""Run the models one after the other, each in a process of its own with limits, and keep what was found."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from compat import page, processes, records
from compat.entries import LIBRARIES, Entry, entries
from compat.measure import Limits

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str], modules: dict[str, str] | None = None) -> int:
    """Command line of the sweep.

    Args:
        arguments: see `--help`.
        modules: library -> module with its models, for tests.
    """
    given = _parser(modules or LIBRARIES).parse_args(arguments)
    if given.write_docs:
        return write_docs(given.out, ROOT)
    everything = entries(modules)
    order = [entry.key for entry in everything]
    known = records.read(given.out)
    chosen = [entry for entry in everything if _wanted(entry, known.get(entry.key), given)]
    print(f"{len(chosen)} of {len(everything)} models to try", flush=True)
    processes.load(dict.fromkeys(library for entry in chosen for library in entry.preload))
    pool = ThreadPoolExecutor(given.jobs)
    try:
        for i, record in enumerate(pool.map(lambda entry: try_model(entry, given, known.get(entry.key)), chosen), 1):
            records.put(given.out, record, order)
            print(f"[{i}/{len(chosen)}] {line(record)}", flush=True)
    finally:  # after Ctrl-C the model under way ends, and no other begins
        pool.shutdown(cancel_futures=True)
    return 0


def write_docs(out: Path, root: Path) -> int:
    """`docs/compatibility.md` and `results/compat.json` from the records; a warning where there are none."""
    found = records.read(out)
    if not found:
        print(f"no records in {out}; run the sweep first", file=sys.stderr)
        return 1
    page.write_page(found, root / "docs" / "compatibility.md")
    records.write(root / "results" / "compat.json", found.values())
    return 0


def _parser(libraries: dict[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compat.py", description="Try npn on models of other libraries.")
    parser.add_argument("--library", action="append", choices=list(libraries), help="only this one; may be repeated")
    parser.add_argument("--match", metavar="PATTERN", action="append", help="only models of such a name, as in 'vit*'")
    parser.add_argument("--first", metavar="N", type=int, help="only the first N variants of each family")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument(
        "--limit-seconds", metavar="S", type=int, default=150, help="CPU time of one model (default 150)"
    )
    parser.add_argument(
        "--limit-gigabytes", metavar="G", type=float, default=6.0, help="memory of one model (default 6)"
    )
    parser.add_argument("--onnx", action="store_true", help="export to ONNX and run it, too")
    parser.add_argument("--peers", action="store_true", help="prune half of the same model with Torch-Pruning, too")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "compat.json", help="the records (results/compat.json)"
    )
    parser.add_argument(
        "--again", nargs="?", const="all", choices=["all", "failed", "slow"],
        help="try models whose records are there already: all, those that are not exact, or those over 30 s to attach",
    )  # fmt: skip
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/compatibility.md from the records, and stop"
    )
    return parser


def _wanted(entry: Entry, record: records.Record | None, given: argparse.Namespace) -> bool:
    if given.library and entry.library not in given.library:
        return False
    if given.match and not any(fnmatch(entry.name, pattern) for pattern in given.match):
        return False
    if given.first is not None and entry.variant >= given.first:
        return False
    if given.again == "all" or record is None:
        return given.again in (None, "all")
    if given.again == "failed":
        return records.status(record) != "exact"
    if given.again == "slow":
        return record.get("seconds", 0) > page.SLOW
    missing = (given.peers and "peer" not in record) or (given.onnx and record.get("attached") and "onnx" not in record)
    return bool(missing) or not records.fresh(record, versions(entry.package))


def try_model(entry: Entry, given: argparse.Namespace, known: records.Record | None) -> records.Record:
    """The record of one model, whatever happens to its process; only what is missing of a fresh one is run."""
    head = {"library": entry.library, "model": entry.name, "family": entry.family, "versions": versions(entry.package)}
    head |= {"commit": commit(), "date": datetime.now(UTC).date().isoformat()}
    kept = known if not given.again and records.fresh(known, versions(entry.package)) else None
    if kept is None or (given.onnx and "onnx" not in kept):
        record = head | _run(entry, given, "onnx" if given.onnx else "measure")
    else:
        record = kept
    if given.peers:
        record["peer"] = _run(entry, given, "peer") | {"version": versions("torch-pruning")["torch-pruning"]}
    elif known and "peer" in known:
        record["peer"] = known["peer"]
    return record


def _run(entry: Entry, given: argparse.Namespace, task: str) -> dict[str, Any]:
    return processes.run(entry.module, entry.name, task, Limits(given.limit_seconds, given.limit_gigabytes))


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def versions(package: str) -> dict[str, str]:
    """Versions that a record depends on."""
    return {name: _version(name) for name in ("npn", "torch", package)}


@cache
def commit() -> str:
    """The last commit that changed the library, marked where its files differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words, "--", "src"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return (git("log", "-1", "--format=%h") or "unknown") + ("-dirty" if git("status", "--porcelain") else "")


def line(record: records.Record) -> str:
    """One line of progress."""
    parts = [time.strftime("%H:%M:%S"), record["library"], record["model"], records.status(record)]
    if "groups" in record:
        parts.append(f"{record['groups']} groups, {record['share']:.0%} can go")
    if "seconds" in record:
        parts.append(f"attach {record['seconds']:.1f} s")
    if record.get("errors"):
        parts.append(f"error {max(record['errors'].values()):.0e}")
    parts += [f"{stage}: {what['error'][:160]} [{what['began']}]" for stage, what in record.get("failed", {}).items()]
    if "peer" in record:
        parts.append(f"peer: {page.peer_words(record['peer'])}")
    return " | ".join(parts)
