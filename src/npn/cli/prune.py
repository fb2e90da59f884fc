"""`npn prune`: shrink a trained model to a size in one shot, and write the small model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from npn._importance import CRITERIA, ON_DATA
from npn._prune import closed_to_target
from npn.cli.inputs import HELP, make_both
from npn.cli.options import JSON, Streams, writable
from npn.cli.user_code import called, imported, one_line, written
from npn.counting import count_macs, count_params
from npn.errors import ConfigurationError
from npn.export import chosen_format
from npn.gates.costing import CostModel
from npn.plasticity import Plasticity


def prune(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY", help="The trained model, or a function that makes it: package.module:name."
        ),
    ],
    input: Annotated[
        list[str],
        typer.Option(help=HELP),
    ],
    target: Annotated[float, typer.Option(help="Size to reach; up to 1: a share of the present one.")],
    cost: Annotated[str, typer.Option(help="Unit of the target: macs or params.")] = "macs",
    criterion: Annotated[
        str, typer.Option(help="magnitude, bn_scale or random; with --batches also taylor or fisher.")
    ] = "magnitude",
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="A pair (batches, loss), or a function that makes it; loss(model, batch) is a scalar.",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Pattern of group names that may lose units.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Pattern of group names to leave as they are.")] = None,
    streams: Streams = False,
    round_to: Annotated[int, typer.Option(min=1, help="Keep a multiple of so many channels.")] = 1,
    max_pruning_ratio: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest share of a group's units that may go.")
    ] = 1.0,
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Refit the layers that read what goes, by least squares on --batches.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="pt2, onnx, safetensors, bitmap or csr. (default: as --out ends, else pt2)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write. (default: pruned.FORMAT)")] = None,
    as_json: JSON = False,
) -> None:
    """Remove the least important units of a trained model, without training, and write the small model."""
    format = chosen_format(out, format, "pt2")
    path = writable(out or Path(f"pruned.{format}"))
    if batches is None and (reconstruct or criterion in ON_DATA):
        needs = "--reconstruct" if reconstruct else f"--criterion {criterion}"
        others = ", ".join(name for name in CRITERIA if name not in ON_DATA)
        instead = "leave it out" if reconstruct else f"choose one of {others}"
        raise ConfigurationError(
            f"{needs} needs data: name a pair (batches, loss) with --batches MODULE:FACTORY, or {instead}"
        )
    data, loss = (None, None) if batches is None else make_batches(batches)
    model, example = make_both(factory, input)
    with one_line(batches or factory, "call loss(model, batch) in Python with one batch first", named=False):
        plastic = closed_to_target(
            model, example, target=target, cost=cost, criterion=criterion, batches=data, loss=loss,
            only=only, skip=skip, streams=streams, round_to=round_to, max_pruning_ratio=max_pruning_ratio,
            reconstruct=reconstruct,
        )  # fmt: skip
    small = plastic.export()
    if not as_json:
        show(Console(), factory, plastic, small, example)
    written(small, example, path, format)
    size = path.stat().st_size
    if as_json:
        result = {"file": str(path), "format": format, "bytes": size, **changes(plastic, small, example)}
        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(f"{path} ({size:,} bytes)")


def changes(plastic: Plasticity, small: nn.Module, example: Any) -> dict[str, Any]:
    """Collect sizes before and after.

    Args:
        plastic: the model before, with closed units.
        small: the model after.
        example: example inputs; MACs count their batch.

    Returns:
        `params`, `macs` and, by name of the group, `groups`: pairs of numbers.
    """
    left = plastic.sizes()
    return {
        "params": [count_params(plastic.model), count_params(small)],
        "macs": [count_macs(plastic.model, example), count_macs(small, example)],
        "groups": {group.name: [group.size, left[group.name]] for group in plastic.groups},
    }


def make_batches(factory: str) -> tuple[Any, Any]:
    """Make the pair (batches, loss) that a command line names.

    Args:
        factory: `package.module:name` of a pair, or of a function that makes one.

    Raises:
        ConfigurationError: `name` cannot be found, is neither, needs arguments or fails.
    """
    made = imported(factory)
    if callable(made):
        made = called(made, factory)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ConfigurationError(
            f"{factory} is a {type(made).__name__}, expected a pair (batches, loss) with loss(model, batch) -> scalar"
        )
    return made


def show(console: Console, title: str, plastic: Plasticity, small: nn.Module, example: Any) -> None:
    """Print a table with the units, parameters and MACs of each group, before and after.

    Args:
        console: to print on.
        title: of the table.
        plastic: the model before, with closed units.
        small: the model after.
        example: example inputs; MACs count their batch.
    """
    costs = CostModel(plastic.model, plastic.structure, torch.device("cpu"))

    def carried(kind: str, name: str, sizes: Mapping[str, int]) -> float:
        return costs.at(kind, sizes) - costs.at(kind, {**sizes, name: 0})

    before, after = {group.name: group.size for group in plastic.groups}, plastic.sizes()
    table = Table(title=title, title_justify="left")
    for column in ("group", "units", "parameters", "MACs"):
        table.add_column(column, justify="left" if column == "group" else "right")
    for name in before:
        weights = (_change(carried(kind, name, before), carried(kind, name, after)) for kind in ("params", "macs"))
        table.add_row(name, _change(before[name], after[name]), *weights)
    params = _change(count_params(plastic.model), count_params(small))
    macs = _change(count_macs(plastic.model, example), count_macs(small, example))
    table.add_section()
    table.add_row("whole model", "", params, macs)
    console.print(table)


def _change(before: float, after: float) -> str:
    return f"{before:,.0f} -> {after:,.0f}" if round(before) != round(after) else f"{before:,.0f}"
