"""The `npn` command: `npn run` trains an experiment, `npn bench` makes the committed results."""

import contextlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from npn.cli.model import register as register_model_commands
from npn.cli.options import Launch, spelled_out
from npn.cli.prune import register as register_prune
from npn.errors import ConfigurationError, PlasticityError
from npn.experiments.engine.options import Options, ResNetOptions
from npn.experiments.engine.rundir import RunDirectory, make_folder

if TYPE_CHECKING:
    from npn.experiments.engine.recipe import Experiment, Outcome

INTERRUPTED = 130  # what shells expect of a program that SIGINT has ended


class FriendlyGroup(TyperGroup):
    """The command group, with npn's own errors as one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PlasticityError as error:
            who = f"error in process {os.environ['RANK']}" if console.quiet else "error"
            typer.secho(f"{who}: {error}", err=True, fg="red")
            raise typer.Exit(1) from None


app = typer.Typer(
    name="npn",
    cls=FriendlyGroup,
    help="Networks that shrink and grow while they train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
run_app = typer.Typer(help="Train one experiment; pictures and results go to a folder.", no_args_is_help=True)
bench_app = typer.Typer(help="Run an experiment over several seeds and write its table.", no_args_is_help=True)
app.add_typer(run_app, name="run")
app.add_typer(bench_app, name="bench")
register_model_commands(app)
register_prune(app)
console = Console(quiet=os.environ.get("RANK", "0") != "0")  # of torchrun's processes the first one talks


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print(f"npn {version('npn')}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Networks that shrink and grow while they train."""


@run_app.command("moons")
@spelled_out(without=["data"])
def run_moons(options: Options, launch: Launch) -> None:
    """Two moons, the paper's VI-A: 100 features and 80 hidden units shrink, or 3 and 3 grow."""
    from npn.experiments.moons.recipe import EXPERIMENT

    _run(EXPERIMENT, options, launch)


@run_app.command("lenet5-mnist")
@spelled_out()
def run_lenet5(
    options: Options,
    launch: Launch,
    preset: Annotated[str | None, typer.Option(help='"paper" for its 100, 250 and 150 epochs.')] = None,
) -> None:
    """LeNet-5 on MNIST, the paper's VI-B: 20-50-500 shrinks, or 3-3-3 grows."""
    from npn.experiments.lenet5.recipe import EXPERIMENT, PAPER_STAGES, STAGES

    if preset not in (None, "paper"):
        raise ConfigurationError(f'preset must be "paper", got {preset!r}')
    if preset and options.epochs:
        raise ConfigurationError("give --preset or --epochs, not both")
    if preset and len(STAGES.get(options.mode or "", PAPER_STAGES)) != len(PAPER_STAGES):
        raise ConfigurationError(
            f"--preset paper is for the modes sparsify and expand, which have its three stages, got {options.mode!r}; "
            "give --epochs instead"
        )
    if preset:
        options = replace(options, epochs=",".join(map(str, PAPER_STAGES)))
    _run(EXPERIMENT, options, launch)


@run_app.command("resnet56-cifar10")
@spelled_out()
def run_resnet56(options: ResNetOptions, launch: Launch) -> None:
    """ResNets on CIFAR, the paper's VI-C: the full width shrinks, or a fifth of it grows."""
    from npn.experiments.resnet.recipe import EXPERIMENT

    _run(EXPERIMENT, options, launch)


@bench_app.callback()
def bench() -> None:
    """Run an experiment over several seeds and write its table."""
    from npn.experiments.engine.processes import launched

    if launched() > 1:
        raise ConfigurationError(f"npn bench runs on one process, got {launched()}; under torchrun use npn run")


@bench_app.command("moons")
@spelled_out(without=["mode", "seed", "data"])
def bench_moons(
    options: Options,
    seeds: Annotated[str, typer.Option(help='Seeds, as "0-4" or "0,3,7".')] = "0-4",
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/moons"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs.")] = Path("runs/bench-moons"),
) -> None:
    """Both modes of the two moons over several seeds, beside the paper's numbers."""
    from npn.experiments.moons import bench
    from npn.experiments.moons import recipe as moons
    from npn.experiments.report.tables import command_line, parse_seeds

    make_folder(out.parent)
    outcomes: dict[str, list[Outcome]] = {}
    for mode in moons.STAGES:
        for seed in parse_seeds(seeds):
            chosen = replace(options, mode=mode, seed=seed)
            launch = Launch(runs / f"{mode}-{seed}")
            outcome = _train(moons.EXPERIMENT, chosen, launch, f"Start again with: {command_line()}")
            outcomes.setdefault(mode, []).append(outcome)
    files = bench.moons(out, outcomes)
    _show(files)


@bench_app.command("lenet5")
@spelled_out(without=["mode", "seed", "budget", "penalty"])
def bench_lenet5(
    options: Options,
    seeds: Annotated[str, typer.Option(help='Seeds, as "0-4" or "0,3,7".')] = "0-2",
    modes: Annotated[str, typer.Option(help="Of sparsify, expand, scratch, dense.")] = "sparsify,expand,scratch,dense",
    budgets: Annotated[str | None, typer.Option(help="Parameters to end with. (default: some for each mode)")] = None,
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/lenet5"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs; finished ones are not made again.")] = Path(
        "runs/bench-lenet5"
    ),
) -> None:
    """LeNet-5 over budgets and seeds: parameters against error, beside published results."""
    from npn.experiments.lenet5 import bench as frontier
    from npn.experiments.report.tables import parse_seeds

    sizes = _sizes(budgets) if budgets else None
    make_folder(out.parent)
    files = frontier.bench(out, runs, options, parse_seeds(seeds), _listed(modes), sizes, _train_in)
    _show(files)


@bench_app.command("resnet56")
@spelled_out(without=["mode", "seed", "budget", "penalty"])
def bench_resnet56(
    options: ResNetOptions,
    seeds: Annotated[str, typer.Option(help='Seeds, as "0-4" or "0,3,7".')] = "0-2",
    modes: Annotated[str, typer.Option(help="Of dense, scratch, sparsify, expand.")] = "dense,scratch,sparsify,expand",
    budgets: Annotated[str, typer.Option(help="MACs to end with; up to 1: a share of the full net.")] = "0.5",
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/resnet56"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs; finished ones are not made again.")] = Path(
        "runs/bench-resnet56"
    ),
) -> None:
    """ResNets on CIFAR over modes and seeds: accuracy against MACs, shrunk and grown beside plain nets."""
    from npn.experiments.report.tables import parse_seeds
    from npn.experiments.resnet import bench as resnet_bench

    make_folder(out.parent)
    files = resnet_bench.bench(out, runs, options, parse_seeds(seeds), _listed(modes), _sizes(budgets), _train_in)
    _show(files)


@bench_app.command("estimators")
@spelled_out(without=["mode", "seed", "estimator", "function", "penalty", "epochs"])
def bench_estimators(
    options: Options,
    seeds: Annotated[str, typer.Option(help='Seeds of the runs, as "0-2".')] = "0-2",
    epochs: Annotated[str, typer.Option(help="Epochs of every run, in all or per stage.")] = "3,10,5",
    estimators: Annotated[
        str | None, typer.Option(help="To train with, separated by commas. (default: all six)")
    ] = None,
    draws: Annotated[int, typer.Option(help="Single draws of each estimator per batch.")] = 500,
    reference: Annotated[int, typer.Option(help="Draws of the unbiased reference per batch.")] = 4000,
    batches: Annotated[int, typer.Option(help="Batches of training images to average over.")] = 1,
    rounds: Annotated[int, typer.Option(help="Measurements of each step's time.")] = 30,
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/estimators"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs; what is there is not made again.")] = Path(
        "runs/bench-estimators"
    ),
) -> None:
    """All gradient estimators on LeNet-5: bias, variance and time of a gradient, and what the networks come to."""
    from npn.experiments.estimators import bench
    from npn.experiments.estimators.gradients import ESTIMATORS
    from npn.experiments.report.tables import parse_seeds

    names = _listed(estimators) if estimators else ESTIMATORS
    make_folder(out.parent)
    files = bench.bench(
        out,
        runs,
        replace(options, epochs=epochs),
        parse_seeds(seeds),
        names,
        bench.Settings(draws, reference, batches, rounds),
        _train_in,
    )
    _show(files)


def _show(files: list[Path]) -> None:
    """A bench's page, the second of its files, and where they are."""
    console.print(files[1].read_text(), highlight=False, markup=False)
    _list_files(files)


def _listed(text: str) -> list[str]:
    """What commas separate."""
    return [part.strip() for part in text.split(",")]


def _sizes(budgets: str) -> list[float]:
    """What commas separate, as budgets."""
    try:
        sizes = [float(part) for part in _listed(budgets)]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size < math.inf for size in sizes):
        raise ConfigurationError(
            f'budgets must be numbers above 0, separated by commas, as "0.5,0.25", got {budgets!r}'
        )
    return sizes


def _run(experiment: "Experiment", options: Options, launch: Launch) -> None:
    """One `npn run`: start or resume, then say what came out and where it is."""
    from npn.experiments.engine import processes

    out = launch.out or Path("runs") / f"{experiment.name}-{options.mode or 'sparsify'}-{options.seed or 0}"
    launch, directory = replace(launch, out=out), RunDirectory(out)
    with processes.group():
        resume = processes.from_first(lambda: _resumes(directory, launch))
        if resume is not None:
            go_on = f"Go on with: npn run {experiment.name} --resume --out {out}"
            _train(experiment, options, replace(launch, resume=resume), go_on)
    if console.quiet:
        return
    result = directory.result()
    console.print(
        f"[bold]{result['accuracy']:.2%}[/bold] on the test data with [bold]{result['params']:,}[/bold] parameters "
        f"({result['architecture']}; {result['params_with_biases']:,} with biases, {result['macs']:,} MACs)",
        highlight=False,
    )
    _list_files(sorted(out.iterdir()))


def _resumes(directory: RunDirectory, launch: Launch) -> bool | None:
    """Whether to go on where a run was stopped; None if it is finished."""
    out = directory.path
    if launch.resume and directory.finished:
        console.print(f"The run in {out} is finished already.", highlight=False, soft_wrap=True)
        return None
    if launch.resume and not directory.unfinished:
        console.print(f"No checkpoint in {out} yet: starting from the beginning.", highlight=False, soft_wrap=True)
        return False
    if directory.unfinished and not (launch.resume or launch.overwrite):
        raise ConfigurationError(
            f"{out} holds an unfinished run: --resume continues it, --overwrite deletes it, --out takes another"
        )
    if directory.finished and not launch.overwrite:
        raise ConfigurationError(f"{out} holds a finished run: --overwrite deletes it, --out takes another")
    return launch.resume


def _train(experiment: "Experiment", options: Options, launch: Launch, go_on: str) -> "Outcome":
    """Run an experiment with a progress display; `go_on` is what to do if it is stopped."""
    import npn
    from npn.experiments.engine import runner
    from npn.experiments.engine.observers import Observer, Observers
    from npn.experiments.engine.stopping import Interrupted, OutOfTime
    from npn.experiments.report.console import ProgressDisplay

    assert launch.out is not None
    directory, resume, minutes = RunDirectory(launch.out), launch.resume, launch.stop_after
    try:
        with contextlib.ExitStack() as stack:
            display = ProgressDisplay(console, f"{experiment.name} {launch.out.name}")
            observers: list[Observer] = [stack.enter_context(display)]
            if launch.tensorboard and not console.quiet:
                from npn.experiments.report.board import Board

                done = npn.read_extra(directory.checkpoint_file)["rows"] if resume else 0
                observers.append(stack.enter_context(contextlib.closing(Board(launch.out / "tensorboard", done))))
            together = Observers(observers)
            return runner.run(experiment, options, directory, together, resume=resume, stop_after=minutes)
    except Interrupted as stopped:
        late = isinstance(stopped, OutOfTime)
        why = f"Stopped: another epoch would not fit into {minutes:g} minutes." if late else "Stopped."
        console.print(f"{why} {go_on}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _train_in(experiment: "Experiment", options: Options, path: Path, resume: bool) -> "Outcome":
    """A bench's run: what the bench finds in its folder when started again is not made again."""
    from npn.experiments.report.tables import command_line

    return _train(experiment, options, Launch(path, resume), f"Go on with the same command: {command_line()}")


def _list_files(files: list[Path]) -> None:
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
