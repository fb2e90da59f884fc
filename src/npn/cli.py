"""The `npn` command: `npn run` trains an experiment, `npn bench` makes the committed results."""

import contextlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

EXTRAS = ("typer", "rich", "matplotlib", "sklearn", "pooch")  # what the `cli` extra installs
_missing = [name for name in EXTRAS if find_spec(name) is None]
if _missing:
    sys.exit(
        f"the npn command needs {', '.join(_missing)}, not installed here; install it with: pip install 'npn[cli]'"
    )

import typer  # noqa: E402 - only once it is known to be there
from rich.console import Console  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from npn.cli_model import register as register_model_commands  # noqa: E402

if TYPE_CHECKING:
    from npn.experiments.options import Options
    from npn.experiments.runner import Experiment, Outcome

INTERRUPTED = 130  # what shells expect of a program that SIGINT has ended


class FriendlyGroup(TyperGroup):
    """The command group, with npn's own errors as one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command."""
        from npn.errors import PlasticityError

        try:
            return super().invoke(ctx)
        except PlasticityError as error:
            typer.secho(f"error: {error}", err=True, fg="red")
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
console = Console()

Seed = Annotated[int | None, typer.Option(min=0, help="Draws data, weights and masks. [default: 0]")]
Mode = Annotated[
    str | None, typer.Option(help="sparsify (start full, remove) or expand (start tiny, add). [default: sparsify]")
]
Sharpness = Annotated[float | None, typer.Option("--k", min=0.0, help="Sharpness k of the plastic stage. [default: 7]")]
Estimator = Annotated[
    str | None, typer.Option(help="arm, disarm, rloo, double_cv, straight_through or reinmax. [default: reinmax]")
]
Function = Annotated[str | None, typer.Option(help="sigmoid, hard_sigmoid or shifted_sigmoid. [default: sigmoid]")]
Penalty = Annotated[float | None, typer.Option(min=0.0, help="Price of a parameter in loss units.")]
Budget = Annotated[
    float | None,
    typer.Option(min=0.0, help="Parameters to end with, instead of a penalty; up to 1: a share of the full net."),
]
Epochs = Annotated[str | None, typer.Option(help='Epochs in all, or per stage: "60,340,100".')]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cpu]")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in --out was stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete an unfinished run in --out.")]
DataFolder = Annotated[
    str | None, typer.Option(help="Folder of the data set's files. [default: $NPN_DATA, else downloaded]")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write curves to the folder's tensorboard/ as well.")]


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
def run_moons(
    mode: Mode = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/moons-MODE-SEED]")] = None,
    k: Sharpness = None,
    estimator: Estimator = None,
    function: Function = None,
    penalty: Penalty = None,
    budget: Budget = None,
    epochs: Epochs = None,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Two moons, the paper's VI-A: 100 features and 80 hidden units shrink, or 3 and 3 grow."""
    from npn.experiments.moons import EXPERIMENT
    from npn.experiments.options import Options

    options = Options(mode, seed, k, estimator, function, penalty, budget, epochs, device)
    out = out or Path("runs") / f"moons-{mode or 'sparsify'}-{seed or 0}"
    _run(EXPERIMENT, options, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard)


@run_app.command("lenet5-mnist")
def run_lenet5(
    mode: Mode = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/lenet5-mnist-MODE-SEED]")] = None,
    k: Sharpness = None,
    estimator: Estimator = None,
    function: Function = None,
    penalty: Penalty = None,
    budget: Budget = None,
    epochs: Epochs = None,
    device: Device = None,
    data: DataFolder = None,
    preset: Annotated[str | None, typer.Option(help='"paper" for its 100, 250 and 150 epochs.')] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    tensorboard: TensorBoard = False,
) -> None:
    """LeNet-5 on MNIST, the paper's VI-B: 20-50-500 shrinks, or 3-3-3 grows."""
    from npn.errors import ConfigurationError
    from npn.experiments.lenet5 import EXPERIMENT, PAPER_STAGES
    from npn.experiments.options import Options

    if preset not in (None, "paper"):
        raise ConfigurationError(f'preset must be "paper", got {preset!r}')
    if preset and epochs:
        raise ConfigurationError("give --preset or --epochs, not both")
    epochs = ",".join(map(str, PAPER_STAGES)) if preset else epochs
    options = Options(mode, seed, k, estimator, function, penalty, budget, epochs, device, data)
    out = out or Path("runs") / f"lenet5-mnist-{mode or 'sparsify'}-{seed or 0}"
    _run(EXPERIMENT, options, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard)


@bench_app.command("moons")
def bench_moons(
    seeds: Annotated[str, typer.Option(help='Seeds, as "0-4" or "0,3,7".')] = "0-4",
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/moons"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs.")] = Path("runs/bench-moons"),
    k: Sharpness = None,
    estimator: Estimator = None,
    function: Function = None,
    penalty: Penalty = None,
    budget: Budget = None,
    epochs: Epochs = None,
    device: Device = None,
) -> None:
    """Both modes of the two moons over several seeds, beside the paper's numbers."""
    from npn.experiments import bench, moons
    from npn.experiments.options import Options
    from npn.experiments.report import parse_seeds

    outcomes: dict[str, list[Outcome]] = {}
    for mode in moons.STAGES:
        for seed in parse_seeds(seeds):
            options = Options(mode, seed, k, estimator, function, penalty, budget, epochs, device)
            outcome = _train(moons.EXPERIMENT, options, runs / f"{mode}-{seed}")
            outcomes.setdefault(mode, []).append(outcome)
    files = bench.moons(out, outcomes)
    console.print(files[1].read_text(), highlight=False, markup=False)
    _list_files(files)


@bench_app.command("estimators")
def bench_estimators(
    seeds: Annotated[str, typer.Option(help='Seeds of the runs, as "0-2".')] = "0-2",
    epochs: Annotated[str, typer.Option(help="Epochs of every run, in all or per stage.")] = "3,10,5",
    estimators: Annotated[
        str | None, typer.Option(help="To train with, separated by commas. [default: all six]")
    ] = None,
    draws: Annotated[int, typer.Option(help="Single draws of each estimator per batch.")] = 500,
    reference: Annotated[int, typer.Option(help="Draws of the unbiased reference per batch.")] = 4000,
    batches: Annotated[int, typer.Option(help="Batches of 128 images to average over.")] = 1,
    rounds: Annotated[int, typer.Option(help="Measurements of each step's time.")] = 30,
    out: Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = Path("results/estimators"),
    runs: Annotated[Path, typer.Option(help="Folder for the single runs; what is there is not made again.")] = Path(
        "runs/bench-estimators"
    ),
    k: Sharpness = None,
    budget: Budget = None,
    device: Device = None,
    data: DataFolder = None,
) -> None:
    """All gradient estimators on LeNet-5: bias, variance and time of a gradient, and what the networks come to."""
    from npn.experiments import estimators as bench
    from npn.experiments.gradients import ESTIMATORS
    from npn.experiments.options import Options
    from npn.experiments.report import parse_seeds

    names = [name.strip() for name in estimators.split(",")] if estimators else ESTIMATORS
    files = bench.bench(
        out,
        runs,
        Options(k=k, budget=budget, epochs=epochs, device=device, data=data),
        parse_seeds(seeds),
        names,
        bench.Settings(draws, reference, batches, rounds),
        lambda experiment, options, path, resume: _train(experiment, options, path, resume=resume),
    )
    console.print(files[1].read_text(), highlight=False, markup=False)
    _list_files(files)


def _run(
    experiment: "Experiment", options: "Options", out: Path, *, resume: bool, overwrite: bool, tensorboard: bool
) -> None:
    """One `npn run`: start or resume, then say what came out and where it is."""
    from npn.errors import ConfigurationError
    from npn.experiments.rundir import RunDirectory

    directory = RunDirectory(out)
    if resume and directory.finished:
        console.print(f"The run in {out} is finished already.", highlight=False, soft_wrap=True)
    else:
        if resume and not directory.unfinished:
            console.print(f"No checkpoint in {out} yet: starting from the beginning.", highlight=False, soft_wrap=True)
            resume = False
        elif directory.unfinished and not (resume or overwrite):
            raise ConfigurationError(
                f"{out} holds an unfinished run: --resume continues it, --overwrite deletes it, --out takes another"
            )
        _train(experiment, options, out, resume=resume, tensorboard=tensorboard)
    result = directory.result()
    console.print(
        f"[bold]{result['accuracy']:.2%}[/bold] on the test data with [bold]{result['params']:,}[/bold] parameters "
        f"({result['architecture']}; {result['params_with_biases']:,} with biases, {result['macs']:,} MACs)",
        highlight=False,
    )
    _list_files(sorted(out.iterdir()))


def _train(
    experiment: "Experiment", options: "Options", out: Path, *, resume: bool = False, tensorboard: bool = False
) -> "Outcome":
    """Run an experiment with a progress display."""
    import npn
    from npn.experiments import runner
    from npn.experiments.console import ProgressDisplay
    from npn.experiments.rundir import RunDirectory

    name, directory = f"{experiment.name} {out.name}", RunDirectory(out)
    try:
        with contextlib.ExitStack() as stack:
            observers: list[runner.Observer] = [stack.enter_context(ProgressDisplay(console, name))]
            if tensorboard:
                from npn.experiments.board import Board

                done = npn.read_extra(directory.checkpoint_file)["rows"] if resume else 0
                observers.append(stack.enter_context(contextlib.closing(Board(out / "tensorboard", done))))
            return runner.run(experiment, options, directory, runner.Observers(observers), resume=resume)
    except runner.Interrupted:
        console.print(
            f"Stopped. Go on with: npn run {experiment.name} --resume --out {out}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(INTERRUPTED) from None


def _list_files(files: list[Path]) -> None:
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
