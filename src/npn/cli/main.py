"""The commands of `npn`, and its own errors as one line instead of a traceback."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import npn
from npn.cli import bench, model, prune, report, run
from npn.errors import PlasticityError
from npn.experiments.engine import processes


class FriendlyGroup(TyperGroup):
    """The command group; it prints an error of npn as one line, and a warning that no line of the user's led to."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command.

        Args:
            ctx: of the command.
        """
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _told(warnings.showwarning)
                return super().invoke(ctx)
        except PlasticityError as error:
            rank, text = processes.rank(), " ".join(str(error).split())
            typer.secho(f"error in process {rank}: {text}" if rank else f"error: {text}", err=True, fg="red")
            raise typer.Exit(1) from None


def _told(show: Callable[..., None]) -> Callable[..., None]:
    """What prints a warning: one that names a line of typer, which is no one's, as its message alone."""

    def tell(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(filename).parent == Path(typer.__file__).parent:
            typer.secho(f"warning: {message}", err=True, fg="yellow")
        else:
            show(message, category, filename, *rest)

    return tell


app = typer.Typer(
    name="npn",
    cls=FriendlyGroup,
    help="Networks that shrink and grow while they train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("inspect")(model.inspect)
app.command("export")(model.export)
app.command("prune")(prune.prune)
app.command("report")(report.report)
app.add_typer(run.app, name="run")
app.add_typer(bench.app, name="bench")


def print_version(wanted: bool) -> None:
    """Print the version and exit, if asked to.

    Args:
        wanted: whether the user asked.
    """
    if wanted:
        typer.echo(f"npn {npn.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Networks that shrink and grow while they train."""
