"""`npn report`: the page of a run, or one that compares several."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from npn.cli.options import writable
from npn.cli.run import list_files
from npn.errors import ConfigurationError
from npn.experiments.engine.pages import dense_run, read_run, write_page
from npn.experiments.engine.rundir import RunDirectory

COMPARISON = Path("report.html")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="The page. (default: RUN/report.html; for several runs, report.html)")
    ] = None,
    dense: Annotated[
        Path | None, typer.Option(metavar="RUN", help="One run: compare it with this one, of the full net.")
    ] = None,
) -> None:
    """Write one self-contained page: a run with its curves, architecture and settings, or several runs compared."""
    if dense is not None and len(runs) > 1:
        raise ConfigurationError(f"--dense is for the page of one run, got {len(runs)} runs; leave it out")
    read = [read_run(path) for path in dict.fromkeys(runs)]
    if len(read) == 1:
        base = dense_run(read[0]) if dense is None else read_run(dense)
        read = [replace(read[0], dense=base)]
    default = RunDirectory(read[0].path).report_file if len(read) == 1 else COMPARISON
    list_files([write_page(writable(out or default), read)], Console())
