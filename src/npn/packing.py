"""How a checkpoint writes down where gated units are, so that a plain model can do without the closed ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from npn.plasticity import Plasticity
from npn.tracing.capture import model_tensors


def pack_columns(plastic: Plasticity) -> list[dict[str, Any]]:
    """Columns with gates, and which of them are closed."""
    structure = plastic.structure
    return [
        {
            "name": columns.name,
            "closed": (~plastic.group(columns.name).gate.present).nonzero().reshape(-1).cpu(),
            "tensor": columns.tensor,
            "axis": columns.axis,
            "kept": columns.kept,
            "full": structure.shapes[columns.tensor][columns.axis],
        }
        for columns in structure.columns
    ]


def pack_groups(plastic: Plasticity) -> list[dict[str, Any]]:
    """Groups, where their units live, and which of them are closed."""
    return [
        {
            "name": group.name,
            "closed": (~group.gate.present).nonzero().reshape(-1).cpu(),
            "slots": [{"tensor": s.tensor, "axis": s.axis, "index": s.index, "reads": s.reads} for s in group.slots],
        }
        for group in plastic.groups
        if group.grows
    ]


def pack_branches(plastic: Plasticity) -> list[dict[str, Any]]:
    """Branches with gates, and which of them are closed."""
    branches = plastic.structure.branches
    if branches is None:
        return []
    closed = (~plastic.group(branches.name).gate.present).nonzero().reshape(-1).cpu()
    scales = [list(names) for names in branches.scales]
    return [{"name": branches.name, "paths": list(branches.paths), "scales": scales, "closed": closed}]


def mute(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Without gates, a closed unit is one that no weight reads, a closed branch one whose last layer is zero."""
    tensors = model_tensors(model)
    columns = {(entry["tensor"], entry["axis"]): entry for entry in content.get("columns", ())}
    muted = [(key, entry["closed"]) for key, entry in columns.items()]
    for group in content.get("groups", ()):
        for slot in group["slots"]:
            if slot["reads"]:
                key, positions = (slot["tensor"], slot["axis"]), slot["index"][group["closed"]].reshape(-1)
                if key in columns:  # positions on the full axis; of these, some are there
                    positions = torch.isin(columns[key]["kept"], positions).nonzero().reshape(-1)
                muted.append((key, positions))
    for (name, axis), positions in muted:
        tensors[name].index_fill_(axis, positions.to(tensors[name].device), 0)
    for branches in content.get("branches", ()):
        for number in branches["closed"].tolist():
            for name in branches["scales"][number]:
                tensors[name].zero_()
