"""`npn inspect` and `npn export`: the parts of a model that can be resized, and files of a trained one."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import npn
from npn import inspection
from npn.cli.inputs import HELP, make_both
from npn.cli.options import JSON, Streams, writable
from npn.cli.user_code import written
from npn.export import chosen_format
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
    streams: Streams = False,
    everything: Annotated[
        bool, typer.Option("--all", help="A line for each layer; else like layers share one.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Show which units of a model can be resized, and why the others cannot."""
    model, inputs = make_both(factory, input)
    found = inspection.inspect(model, inputs, only=only, skip=skip, streams=streams)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        typer.echo(found.table(factory, everything=everything))


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="onnx, pt2, safetensors, bitmap (safetensors, zeros as bits), csr (linear layers sparse where faster) "
            "(default: as --out ends, else onnx)"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write. (default: RUN/model.FORMAT)")] = None,
    batch: Annotated[int, typer.Option(min=1, help="csr: rows for which the layers are timed.")] = 64,
    as_json: JSON = False,
) -> None:
    """Write the compact model of a finished run in a format that other programs read."""
    from npn.experiments.registry import finished_model  # brings matplotlib, which takes a second to import

    format = chosen_format(out, format, "onnx")
    model, example = finished_model(run)
    path = writable(out or run / f"model.{SUFFIXES.get(format, format)}")
    result: dict[str, Any] = {"file": str(path), "format": format}
    if format == "csr":
        model, times = to_csr(model, example, batch)
        npn.save(path, model)
        result["layers"] = [
            {name: None if value == math.inf else value for name, value in asdict(layer).items()} for layer in times
        ]
        for layer in times:
            form = "sparse" if layer.chosen else "dense"
            typer.echo(
                f"{layer.name}: {form} ({layer.zeros:.1%} zeros; {layer.batch} rows take "
                f"{1e6 * layer.sparse:.0f} us sparse, {1e6 * layer.dense:.0f} us dense)",
                err=as_json,
            )
        left = sum(type(module) is nn.Linear for module in model.modules()) - len(times)
        typer.echo(f"linear layers left dense, because under half of their weights are zero: {left}", err=as_json)
    else:
        written(model, example, path, format)
    size = path.stat().st_size
    typer.echo(json.dumps({**result, "bytes": size}, indent=2) if as_json else f"{path} ({size:,} bytes)")
