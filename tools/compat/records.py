"""What is known of each model: one JSON object per line, the latest of a model counts."""

import fcntl
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Key = tuple[str, str]


def read(path: Path) -> dict[Key, Record]:
    """Records by library and model, in the order of the file.

    Args:
        path: lines of JSON objects, or a JSON array with one object per line; a missing file holds none.
    """
    found: dict[Key, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        line = line.strip().rstrip(",")
        if line.startswith("{"):
            record = json.loads(line)
            found[record["library"], record["model"]] = record
    return found


def write(path: Path, records: Iterable[Record]) -> None:
    """Write the file whole: an array with one object per line, or lines alone where the name ends in `.jsonl`."""
    lines = [json.dumps(record) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def put(path: Path, record: Record, order: Sequence[Key] = ()) -> None:
    """Add or replace one record; two sweeps may write to one file.

    Args:
        path: see `read`.
        record: with `library` and `model`.
        order: the models' order in the file; others come last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(path)
        known[record["library"], record["model"]] = record
        place = {key: i for i, key in enumerate(order)}
        write(path, [known[key] for key in sorted(known, key=lambda key: place.get(key, len(place)))])


def fresh(record: Record | None, versions: dict[str, str]) -> bool:
    """A record of just these versions of everything is there."""
    return record is not None and all(record["versions"].get(name) == version for name, version in versions.items())


def status(record: Record, tolerance: float = 1e-5) -> str:
    """One word for a record.

    Returns:
        "exact": all checks passed. "wrong": an error above the tolerance. "refused": attach said why not. "failed": an
        error elsewhere. "time", "memory": ended by a limit. "unusable": the model itself could not be built or run.
    """
    failed = record.get("failed", {})
    if {"build", "run"} & set(failed) or (record.get("stage") in ("build", "run") and record.get("ended")):
        return "unusable"
    if any(error > tolerance for error in record.get("errors", {}).values()):
        return "wrong"
    if record.get("ended"):
        return str(record["ended"])
    if "attach" in failed:
        said = failed["attach"]["error"].startswith(("TraceError", "ConfigurationError"))
        return "refused" if said else "failed"
    return "failed" if failed else "exact"
