"""`npn inspect` and `npn export`: the parts of a model that can be resized, and files of a trained one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import npn
from npn import inspection
from npn.cli.inputs import HELP, check_call, make_inputs
from npn.cli.options import writable
from npn.cli.user_code import make_model, written
from npn.export import check_format
from npn.sparse import to_csr

SUFFIXES = {"bitmap": "bitmap.safetensors", "csr": "csr.pt"}


def inspect(
    factory: Annotated[
        str,
        typer.Argument(metavar="MODULE:FACTORY", help="The model, or a function that makes it: package.module:name."),
    ],
    input: Annotated[
        list[str],
        typer.Option(help=HELP),
    ],
    only: Annotated[list[str] | None, typer.Option(help="Pattern of group names to show.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Pattern of group names to leave out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which units of a model can be resized, and why the others cannot."""
    inputs, model = make_inputs(input), make_model(factory)
    check_call(model, inputs, input)
    found = inspection.inspect(model, inputs, only=only, skip=skip)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show(Console(), factory, found)


def show(console: Console, title: str, found: inspection.Inspection) -> None:
    """Print a table of the groups, and one of the frozen dimensions.

    Args:
        console: to print on.
        title: of the first table.
        found: to print.
    """
    groups = Table(title=f"{title}: {found.params:,} parameters, {found.macs:,} MACs", title_justify="left")
    for column, justify in (("group", "left"), ("units", "right"), ("parameters", "right"), ("MACs", "right")):
        groups.add_column(column, justify=justify)  # type: ignore[arg-type]
    groups.add_column("read by", overflow="fold")
    groups.add_column("follows", overflow="fold")
    for row in found.groups:
        cells = (row.name, f"{row.units:,}", f"{row.params:,}", f"{row.macs:,}")
        groups.add_row(*cells, few(row.read_by), few(row.follows))
    console.print(groups)
    frozen = Table(title="keeps its size", title_justify="left")
    for name in ("dimension", "size", "reason"):
        frozen.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for line in found.frozen:
        frozen.add_row(line.name, f"{line.size:,}", line.reason)
    console.print(frozen)
    if found.norm is not None:
        console.print(found.norm)
    console.print(f"{len(found.groups)} groups, {len(found.frozen)} frozen dimensions, traced in {found.seconds:.1f} s")


def few(names: Sequence[str], most: int = 3) -> str:
    """Join the first names, and add the number of the others; --json has them all.

    Args:
        names: to join.
        most: number of names to join.

    Example:
        >>> few(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx, pt2, safetensors, bitmap (safetensors, zeros as bits), csr (linear layers sparse where faster)."
        ),
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write. (default: RUN/model.FORMAT)")] = None,
    batch: Annotated[int, typer.Option(min=1, help="csr: rows for which the layers are timed.")] = 64,
) -> None:
    """Write the compact model of a finished run in a format that other programs read."""
    from npn.experiments.registry import finished_model  # brings matplotlib, which takes a second to import

    check_format(format)
    model, example = finished_model(run)
    path = writable(out or run / f"model.{SUFFIXES.get(format, format)}")
    if format == "csr":
        model, times = to_csr(model, example, batch)
        npn.save(path, model)
        for layer in times:
            form = "sparse" if layer.chosen else "dense"
            typer.echo(
                f"{layer.name}: {form} ({layer.zeros:.1%} zeros; {layer.batch} rows take "
                f"{1e6 * layer.sparse:.0f} us sparse, {1e6 * layer.dense:.0f} us dense)"
            )
        left = sum(type(module) is nn.Linear for module in model.modules()) - len(times)
        typer.echo(f"linear layers left dense, because under half of their weights are zero: {left}")
    else:
        written(model, example, path, format)
    typer.echo(f"{path} ({path.stat().st_size:,} bytes)")
