"""`npn run`: train one experiment."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from npn.cli import options as given
from npn.cli.options import Launch
from npn.errors import ConfigurationError
from npn.experiments.engine import processes, runner
from npn.experiments.engine.observers import Observer, Observers
from npn.experiments.engine.options import Options
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Interrupted, OutOfTime
from npn.experiments.language.options import LanguageOptions
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.moons.options import MoonsOptions
from npn.experiments.report.board import Board
from npn.experiments.report.console import ProgressDisplay
from npn.experiments.report.scores import score_of
from npn.experiments.resnet.options import ResNetOptions

FRAMES = 60  # of an animation
INTERRUPTED = 130  # the exit status that shells expect after SIGINT

app = typer.Typer(help="Train one experiment; pictures and results go to a folder.", no_args_is_help=True)


# Each command imports its own recipe: recipes import matplotlib, which would slow down every call of npn.
@app.command("moons")
def moons(
    mode: given.Mode = None,
    seed: given.Seed = None,
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    out: given.RunFolder = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    stop_after: given.StopAfter = None,
    tensorboard: given.TensorBoard = False,
    animate: given.Animate = False,
    as_json: given.JSON = False,
    preset: given.Preset = None,
) -> None:
    """Two moons, the paper's VI-A: 100 features and 80 hidden units shrink, or 3 and 3 grow."""
    from npn.experiments.moons.recipe import EXPERIMENT

    common = (mode, seed, k, estimator, function, penalty, budget, epochs, device, None, growth_init, start_from)
    options = MoonsOptions(*common, preset)
    start(EXPERIMENT, options, Launch(out, resume, overwrite, stop_after, tensorboard, as_json, animate))


@app.command("lenet5-mnist")
def lenet5_mnist(
    mode: given.Mode = None,
    seed: given.Seed = None,
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    learning_rate: given.LearningRate = None,
    weight_decay: given.WeightDecay = None,
    augment: given.Augment = None,
    teacher: given.Teacher = None,
    like: given.Like = None,
    weights: Annotated[bool | None, typer.Option("--weights", help="Gates on single weights, not on units.")] = None,
    overshoot: given.Overshoot = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    out: given.RunFolder = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    stop_after: given.StopAfter = None,
    tensorboard: given.TensorBoard = False,
    animate: given.Animate = False,
    as_json: given.JSON = False,
    preset: given.Preset = None,
) -> None:
    """LeNet-5 on MNIST, the paper's VI-B: 20-50-500 shrinks, or 3-3-3 grows."""
    from npn.experiments.lenet5.recipe import EXPERIMENT

    common = (mode, seed, k, estimator, function, penalty, budget, epochs, device, data, growth_init, start_from)
    options = LeNetOptions(*common, learning_rate, weight_decay, augment, teacher, like, weights, preset, overshoot)
    start(EXPERIMENT, options, Launch(out, resume, overwrite, stop_after, tensorboard, as_json, animate))


@app.command("lenet300-mnist")
def lenet300_mnist(
    mode: given.Mode = None,
    seed: given.Seed = None,
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    learning_rate: given.LearningRate = None,
    weight_decay: given.WeightDecay = None,
    augment: given.Augment = None,
    units: Annotated[bool | None, typer.Option("--units", help="Let gates of whole units learn, too.")] = None,
    out: given.RunFolder = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    stop_after: given.StopAfter = None,
    tensorboard: given.TensorBoard = False,
    animate: given.Animate = False,
    as_json: given.JSON = False,
) -> None:
    """LeNet-300-100 on MNIST, with a gate on every single weight; the modes are sparsify, dense and scratch."""
    from npn.experiments.lenet300.options import LeNet300Options
    from npn.experiments.lenet300.recipe import EXPERIMENT

    common = (mode, seed, k, estimator, function, penalty, budget, epochs, device, data, None, None)
    options = LeNet300Options(*common, learning_rate, weight_decay, augment, units)
    start(EXPERIMENT, options, Launch(out, resume, overwrite, stop_after, tensorboard, as_json, animate))


@app.command("resnet56-cifar10")
def resnet56_cifar10(
    mode: given.Mode = None,
    seed: given.Seed = None,
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    depth: given.Depth = None,
    dataset: given.Dataset = None,
    decay: given.Decay = None,
    stream: given.Stream = None,
    blocks: given.Blocks = None,
    precision: given.Precision = None,
    channels_last: given.ChannelsLast = None,
    compile: given.Compile = None,
    graphs: given.Graphs = None,
    antithetic_eval: given.AntitheticEval = None,
    overshoot: given.Overshoot = None,
    round_to: given.RoundTo = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    out: given.RunFolder = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    stop_after: given.StopAfter = None,
    tensorboard: given.TensorBoard = False,
    animate: given.Animate = False,
    as_json: given.JSON = False,
) -> None:
    """ResNets on CIFAR, the paper's VI-C: the full width shrinks, or a fifth of it grows."""
    from npn.experiments.resnet.recipe import EXPERIMENT

    common = (mode, seed, k, estimator, function, penalty, budget, epochs, device, data, growth_init, start_from)
    options = ResNetOptions(
        *common,
        depth,
        dataset,
        decay,
        stream,
        blocks,
        precision,
        channels_last,
        compile,
        graphs,
        antithetic_eval,
        overshoot,
        round_to,
    )
    start(EXPERIMENT, options, Launch(out, resume, overwrite, stop_after, tensorboard, as_json, animate))


@app.command("gpt-text")
def gpt_text(
    mode: given.Mode = None,
    seed: given.Seed = None,
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    text: given.Text = None,
    width: given.Width = None,
    layers: given.Layers = None,
    context: given.Context = None,
    norm: given.Norm = None,
    positions: given.Positions = None,
    precision: given.Precision = None,
    learning_rate: given.LearningRate = None,
    like: given.Like = None,
    blocks: given.Branches = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    out: given.RunFolder = None,
    resume: given.Resume = False,
    overwrite: given.Overwrite = False,
    stop_after: given.StopAfter = None,
    tensorboard: given.TensorBoard = False,
    animate: given.Animate = False,
    as_json: given.JSON = False,
) -> None:
    """A GPT on bytes of source code: heads, MLP units and branches go, or come."""
    from npn.experiments.language.recipe import EXPERIMENT

    common = (mode, seed, k, estimator, function, penalty, budget, epochs, device, None, growth_init, start_from)
    options = LanguageOptions(
        *common, text, width, layers, context, norm, positions, precision, learning_rate, like, blocks
    )
    start(EXPERIMENT, options, Launch(out, resume, overwrite, stop_after, tensorboard, as_json, animate))


def terminal(stderr: bool = False) -> Console:
    """Make a console; of the processes of torchrun only the first one prints.

    Args:
        stderr: print there, and leave stdout for the result.
    """
    return Console(quiet=processes.rank() > 0, stderr=stderr)


def start(experiment: Experiment, options: Options, launch: Launch) -> None:
    """Start or resume a run; then print its result and list its files.

    Args:
        experiment: to run.
        options: settings of the user.
        launch: where and how to run.
    """
    console = terminal(launch.json)
    out = launch.out or Path("runs") / f"{experiment.name}-{options.mode or 'sparsify'}-{options.seed or 0}"
    directory = RunDirectory(out)
    resume = _resumes(directory, launch, console)
    if resume is not None:
        hint = f"Go on with: npn run {experiment.name} --resume --out {out}"
        train(experiment, options, directory, replace(launch, resume=resume), hint)
    if console.quiet:
        return
    result = directory.result()
    if launch.json:
        typer.echo(json.dumps({**result, "files": [str(file) for file in directory.files()]}, indent=2))
        return
    score = score_of(result)
    console.print(
        f"[bold]{score.text(result[score.key])}[/bold] on the test data with [bold]{result['params']:,}[/bold] "
        f"parameters ({result['architecture']}; {result['params_with_biases']:,} with biases, {result['macs']:,} MACs)",
        highlight=False,
    )
    list_files(directory.files(), console)


def _resumes(directory: RunDirectory, launch: Launch, console: Console) -> bool | None:
    """Return whether to resume the run; None if it is finished."""
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


def train(experiment: Experiment, options: Options, directory: RunDirectory, launch: Launch, hint: str) -> Outcome:
    """Run an experiment with a progress display.

    Args:
        experiment: to run.
        options: settings of the user.
        directory: of the run.
        launch: how to run; `resume`, `stop_after` and `tensorboard` count.
        hint: printed if the run is stopped.

    Raises:
        Exit: the run was stopped.
    """
    try:
        return shown(experiment, options, directory, launch)
    except Interrupted as stopped:
        late = isinstance(stopped, OutOfTime)
        why = f"Stopped: another epoch would not fit into {launch.stop_after:g} minutes." if late else "Stopped."
        terminal(launch.json).print(f"{why} {hint}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def shown(experiment: Experiment, options: Options, directory: RunDirectory, launch: Launch) -> Outcome:
    """Run an experiment with a progress display; see `train`.

    Args:
        experiment: to run.
        options: settings of the user.
        directory: of the run.
        launch: how to run.

    Raises:
        Interrupted: the run was stopped.
    """
    with ExitStack() as stack:
        display = ProgressDisplay(terminal(launch.json), f"{experiment.name} {directory.path.name}")
        observers: list[Observer] = [stack.enter_context(display)]
        if launch.tensorboard:
            observers.append(stack.enter_context(Board(directory.path / "tensorboard")))
        minutes, resume = launch.stop_after, launch.resume
        frames = FRAMES if launch.animate else 0
        return runner.run(
            experiment, options, directory, Observers(observers), resume=resume, stop_after=minutes, frames=frames
        )


def list_files(files: list[Path], console: Console) -> None:
    """Print the paths of files.

    Args:
        files: paths.
        console: to print on.
    """
    for file in files:
        console.print(f"  {file}", highlight=False, soft_wrap=True)
