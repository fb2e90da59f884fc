"""Results of an earlier command whose runs the folder no longer holds: they stay in the files that it wrote."""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from npn.experiments.peers.arms import NAMES
from npn.experiments.peers.networks import NETWORKS

PROVENANCE = ("command", "options", "versions", "machine")


def read(path: Path, seeds: Sequence[int], trials: int, epochs: str | None) -> dict[str, Any] | None:
    """Read an earlier result; None if there is none with the same seeds, number of trials and epochs.

    Args:
        path: of the JSON file.
        seeds, trials, epochs: that it must have.
    """
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    made = found.get("seeds"), found.get("trials"), found.get("options", {}).get("epochs")
    return found if made == (list(seeds), trials, epochs) else None


def merged(new: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add to a result what only an earlier one has: methods at a budget of a network, with more seeds.

    Args:
        new: content of the JSON file, as the present runs give it.
        earlier: the same of an earlier command, or None.

    Returns:
        Content of the JSON file; `earlier` says how the parts were made that are not of this command.
    """
    if earlier is None:
        return dict(new)
    mine, theirs = ({entry["network"]: entry for entry in each["networks"]} for each in (new, earlier))
    networks = []
    for name in NETWORKS:
        if name in mine and name in theirs:
            networks.append(_network(mine[name], theirs[name]))
        elif name in mine or name in theirs:
            networks.append(mine.get(name) or theirs[name])
    if networks == new["networks"]:
        return dict(new)
    own, before = _made(new) or _made(earlier), [*earlier.get("earlier", []), _made(earlier)]
    return {**new, **own, "networks": networks, "earlier": [made for made in before if made and made != own]}


def _made(result: Mapping[str, Any]) -> dict[str, Any]:
    """How a result was made; empty where nothing has run."""
    return {key: result[key] for key in PROVENANCE} if "machine" in result else {}


def _network(new: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """One network, each method at each budget as in the result that has more seeds of it; in the new one if equal."""
    asked = {_cell(entry) for key in ("points", "missing", "trials") for entry in new[key]}

    def fuller(key: str, count: Callable[[Any], int]) -> set[tuple[str, float]]:
        mine = {_cell(entry): count(entry) for entry in new[key]}
        return {_cell(entry) for entry in earlier[key] if count(entry) > mine.get(_cell(entry), 0)}

    def joined(key: str, kept: Set[tuple[str, float]]) -> list[Any]:
        found = [entry for entry in new[key] if _cell(entry) not in kept]
        found += [entry for entry in earlier[key] if _cell(entry) in kept or _cell(entry) not in asked]
        return sorted(found, key=lambda entry: (-entry["budget"], NAMES.index(entry["mode"])))

    kept = fuller("points", lambda point: int(point["runs"]))
    parts = {key: joined(key, kept) for key in ("points", "missing")}
    parts["trials"] = joined("trials", kept | fuller("trials", lambda cell: len(cell["trials"])))
    compared: dict[tuple[str, str, float], Any] = {}
    for entry in (*earlier["differences"], *new["differences"]):
        pair = entry["first"], entry["second"], entry["budget"]
        if pair not in compared or entry["accuracy"]["pairs"] >= compared[pair]["accuracy"]["pairs"]:
            compared[pair] = entry
    return {**new, **parts, "differences": [*compared.values()]}


def _cell(entry: Mapping[str, Any]) -> tuple[str, float]:
    return entry["mode"], entry["budget"]
