"""`npn bench`: many runs of an experiment, and the table that they make."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from npn.cli import options as given
from npn.cli.options import Launch, listed, sizes
from npn.cli.run import INTERRUPTED, list_files, shown, terminal, train
from npn.errors import ConfigurationError
from npn.experiments.engine import processes
from npn.experiments.engine.campaign import Train
from npn.experiments.engine.options import Options, parse_seeds
from npn.experiments.engine.recipe import Experiment, Outcome
from npn.experiments.engine.rundir import RunDirectory
from npn.experiments.engine.stopping import Deadline, Interrupted
from npn.experiments.language.options import LanguageOptions
from npn.experiments.lenet5.options import LeNetOptions
from npn.experiments.report.provenance import command_line
from npn.experiments.resnet.options import ResNetOptions

StopAfter = Annotated[
    float | None,
    typer.Option(metavar="MINUTES", help="Stop before an epoch that would end later; the same command goes on."),
]

app = typer.Typer(help="Run an experiment over several seeds and write its table.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Run an experiment over several seeds and write its table."""
    if (count := processes.launched()) > 1:
        raise ConfigurationError(f"npn bench runs on one process, got {count}; under torchrun use npn run")


# Each command imports its own bench: benches import matplotlib, which would slow down every call of npn.
@app.command("moons")
def moons(
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    penalty: given.Penalty = None,
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    seeds: given.Seeds = "0-4",
    out: given.Results = Path("results/moons"),
    runs: Annotated[Path, typer.Option(help="Folder of the single runs.")] = Path("runs/bench-moons"),
) -> None:
    """Both modes of the two moons over several seeds, beside the paper's numbers."""
    from npn.experiments.moons.bench import bench

    options = Options(
        k=k,
        estimator=estimator,
        function=function,
        penalty=penalty,
        budget=budget,
        epochs=epochs,
        device=device,
        growth_init=growth_init,
        start_from=start_from,
    )
    show(bench(out, runs, options, parse_seeds(seeds), train_again))


@app.command("lenet5")
def lenet5(
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    seeds: given.Seeds = "0-2",
    modes: Annotated[
        str, typer.Option(help="Ways to train, of the names in npn.experiments.lenet5.arms.")
    ] = "sparsify,expand,scratch,found,scratch-macs,scratch-macs-grown,dense",
    budgets: Annotated[str | None, typer.Option(help="Parameters to end with. (default: some for each mode)")] = None,
    out: given.Results = Path("results/lenet5"),
    runs: given.RunsFolder = Path("runs/bench-lenet5"),
) -> None:
    """LeNet-5 over budgets and seeds: parameters against error, beside published results."""
    from npn.experiments.lenet5.bench import bench

    options = LeNetOptions(
        k=k,
        estimator=estimator,
        function=function,
        epochs=epochs,
        device=device,
        data=data,
        growth_init=growth_init,
        start_from=start_from,
    )
    wanted = sizes(budgets) if budgets else None
    show(bench(out, runs, options, parse_seeds(seeds), listed(modes), wanted, train_or_resume))


@app.command("lenet5-settings")
def lenet5_settings(
    device: given.Device = None,
    data: given.Data = None,
    epochs: given.Epochs = "1,4,12",
    seeds: given.Seeds = "100-101",
    modes: Annotated[str, typer.Option(help="sparsify, expand, scratch, taught, ...")] = "sparsify,scratch",
    budget: given.Budget = 5320.0,
    trials: Annotated[
        str | None,
        typer.Option(
            metavar="RATE:DECAY[:OVERSHOOT],...",
            help="Learning rates, weight decays, overshoots of growth. (default: those of the page)",
        ),
    ] = None,
    out: given.Results = Path("results/lenet5-settings"),
    runs: given.RunsFolder = Path("runs/bench-lenet5-settings"),
) -> None:
    """Learning rates and weight decays of LeNet-5 by validation accuracy, on seeds that no other bench uses."""
    from npn.experiments.lenet5.settings import TRIALS, bench, parse_trials

    assert budget is not None
    tried = parse_trials(trials) if trials else TRIALS
    options = LeNetOptions(device=device, data=data, epochs=epochs)
    show(bench(out, runs, options, parse_seeds(seeds), listed(modes), tried, budget, train_or_resume))


@app.command("resnet56")
def resnet56(
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
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
    growth_init: given.GrowthInit = None,
    start_from: given.StartFrom = None,
    seeds: given.Seeds = "0-2",
    modes: Annotated[
        str, typer.Option(help="Ways to train, of the names in npn.experiments.resnet.arms.")
    ] = "dense,scratch,sparsify,expand",
    budgets: Annotated[str, typer.Option(help="MACs to end with; up to 1: a share of the full net.")] = "0.5",
    out: given.Results = Path("results/resnet56"),
    runs: given.RunsFolder = Path("runs/bench-resnet56"),
) -> None:
    """ResNets on CIFAR over modes and seeds: accuracy against MACs, shrunk and grown beside plain nets."""
    from npn.experiments.resnet.bench import bench

    options = ResNetOptions(
        k=k,
        estimator=estimator,
        function=function,
        epochs=epochs,
        device=device,
        data=data,
        growth_init=growth_init,
        start_from=start_from,
        depth=depth,
        dataset=dataset,
        decay=decay,
        stream=stream,
        blocks=blocks,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        graphs=graphs,
        antithetic_eval=antithetic_eval,
    )
    show(bench(out, runs, options, parse_seeds(seeds), listed(modes), sizes(budgets), train_or_resume))


@app.command("gpt-text")
def gpt_text(
    k: given.K = None,
    estimator: given.Estimator = None,
    function: given.Function = None,
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
    start_from: given.StartFrom = None,
    seeds: given.Seeds = "0-2",
    modes: Annotated[
        str, typer.Option(help="Ways to train, of the names in npn.experiments.language.arms.")
    ] = "dense,expand,dense-macs,sparsify,scratch,scratch-macs",
    budgets: Annotated[str, typer.Option(help="MACs to end with; up to 1: a share of the full net.")] = "0.5",
    stop_after: StopAfter = None,
    out: given.Results = Path("results/gpt-text"),
    runs: given.RunsFolder = Path("runs/bench-gpt-text"),
) -> None:
    """A GPT on bytes of source code: loss against training MACs and time, grown and shrunk beside plain nets."""
    from npn.experiments.language.bench import bench

    options = LanguageOptions(
        k=k,
        estimator=estimator,
        function=function,
        epochs=epochs,
        device=device,
        start_from=start_from,
        text=text,
        width=width,
        layers=layers,
        context=context,
        norm=norm,
        positions=positions,
        precision=precision,
        learning_rate=learning_rate,
    )
    try:
        files = bench(out, runs, options, parse_seeds(seeds), listed(modes), sizes(budgets), until(stop_after))
    except Interrupted:
        stopped()
    show(files)


@app.command("growth")
def growth(
    experiment: Annotated[str, typer.Argument(help="moons, lenet5-mnist or resnet56-cifar10.")] = "moons",
    budget: given.Budget = None,
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    seeds: given.Seeds = "0-4",
    inits: Annotated[
        str, typer.Option(help="How new units start; the others are compared to the first.")
    ] = "zero,pair,select,split",
    out: Annotated[Path | None, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")] = None,
    runs: given.RunsFolder = Path("runs/bench-growth"),
) -> None:
    """Mode expand with each start of new units, paired by seed: accuracy, size and training cost."""
    from npn.experiments.growing.bench import bench

    options = Options(budget=budget, epochs=epochs, device=device, data=data)
    out = out or Path(f"results/growth-{experiment}")
    show(bench(out, runs, experiment, options, parse_seeds(seeds), listed(inits), train_or_resume))


@app.command("estimators")
def estimators(
    k: given.K = None,
    budget: given.Budget = None,
    device: given.Device = None,
    data: given.Data = None,
    seeds: Annotated[str, typer.Option(help='Seeds of the runs, as "0-2".')] = "0-2",
    epochs: Annotated[str, typer.Option(help="Epochs of every run, in all or per stage.")] = "3,10,5",
    estimators: Annotated[
        str | None, typer.Option(help="Estimators to train with, separated by commas. (default: all six)")
    ] = None,
    draws: Annotated[int, typer.Option(help="Single draws of each estimator per batch.")] = 500,
    reference: Annotated[int, typer.Option(help="Draws of the unbiased reference per batch.")] = 4000,
    batches: Annotated[int, typer.Option(help="Batches of training images to average over.")] = 1,
    rounds: Annotated[int, typer.Option(help="Measurements of each step's time.")] = 30,
    out: given.Results = Path("results/estimators"),
    runs: given.RunsFolder = Path("runs/bench-estimators"),
) -> None:
    """All gradient estimators on LeNet-5: bias, variance and time of a gradient, and the networks at the end."""
    from npn.experiments.estimators.bench import Settings, bench
    from npn.experiments.estimators.gradients import ESTIMATORS

    options = Options(k=k, budget=budget, epochs=epochs, device=device, data=data)
    names = listed(estimators) if estimators else ESTIMATORS
    how = Settings(draws, reference, batches, rounds)
    show(bench(out, runs, options, parse_seeds(seeds), names, how, train_or_resume))


@app.command("peers")
def peers(
    epochs: Annotated[
        str | None, typer.Option(help='Epochs of pre-training, shrinking, fine-tuning: "5,20,25".')
    ] = None,
    device: given.Device = None,
    data: given.Data = None,
    networks: Annotated[str, typer.Option(help="lenet300, lenet5, resnet20.")] = "lenet300,lenet5",
    arms: Annotated[
        str | None,
        typer.Option(
            help="Methods, of the names in npn.experiments.peers.arms. (default: all; resnet20: the best four of those "
            "that have run on the others, and plain nets)"
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Shares of the weights. (default: three for each network)")
    ] = None,
    seeds: given.Seeds = "0-2",
    trials: Annotated[int, typer.Option(min=1, help="Settings that each method tries at each budget.")] = 4,
    precision: given.Precision = None,
    stop_after: StopAfter = None,
    out: given.Results = Path("results/peers"),
    runs: given.RunsFolder = Path("runs/bench-peers"),
) -> None:
    """NPN beside neighbouring methods on the same networks, on equal terms; goes on where it was stopped."""
    from npn.experiments.peers.bench import Wanted, bench
    from npn.experiments.peers.options import PeerOptions

    options = PeerOptions(epochs=epochs, device=device, data=data, precision=precision)
    shares = tuple(sizes(budgets)) if budgets else ()
    wanted = Wanted(listed(networks), listed(arms) if arms else (), shares, parse_seeds(seeds), trials)
    files, early = bench(out, runs, options, wanted, until(stop_after))
    show(files)
    if early:
        stopped()


@app.command("single-weights")
def single_weights(
    epochs: given.Epochs = None,
    device: given.Device = None,
    data: given.Data = None,
    networks: Annotated[str, typer.Option(help="lenet300, lenet5.")] = "lenet300,lenet5",
    seeds: given.Seeds = "0-2",
    modes: Annotated[str, typer.Option(help="weights, augmented, scratch.")] = "weights,augmented,scratch",
    out: given.Results = Path("results/single-weights"),
    runs: given.RunsFolder = Path("runs/bench-single-weights"),
) -> None:
    """LeNets with a gate on every weight: weights left against error, beside published results."""
    from npn.experiments.single_weights.bench import bench

    options = Options(epochs=epochs, device=device, data=data)
    show(bench(out, runs, options, listed(networks), parse_seeds(seeds), listed(modes), train_or_resume))


def stopped() -> NoReturn:
    """Say how to go on with a bench that was stopped, and exit."""
    terminal().print(f"Stopped. Go on with: {command_line()}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(INTERRUPTED)


def until(minutes: float | None) -> Train:
    """Make a function that trains or resumes runs until a time is over.

    Args:
        minutes: from now; None for no limit.

    Returns:
        A function that raises `Interrupted` when the run was stopped or its turn comes too late.
    """
    deadline = Deadline(minutes)

    def train(experiment: Experiment, options: Options, path: Path, resume: bool) -> Outcome:
        return shown(experiment, options, RunDirectory(path), Launch(resume=resume, stop_after=deadline.left()))

    return train


def train_or_resume(experiment: Experiment, options: Options, path: Path, resume: bool) -> Outcome:
    """Train or resume one run of a bench, which continues when it is started again.

    Args:
        experiment: to run.
        options: settings of the run.
        path: folder of the run.
        resume: continue where the run was stopped.
    """
    hint = f"Go on with the same command: {command_line()}"
    return train(experiment, options, RunDirectory(path), Launch(resume=resume), hint)


def train_again(experiment: Experiment, options: Options, path: Path, resume: bool) -> Outcome:
    """Train one run of a bench that keeps no runs.

    Args:
        experiment: to run.
        options: settings of the run.
        path: folder of the run.
        resume: always False.
    """
    return train(experiment, options, RunDirectory(path), Launch(), f"Start again with: {command_line()}")


def show(files: list[Path]) -> None:
    """Print the page of a bench, the second of its files, and list all of them.

    Args:
        files: that the bench has written.
    """
    console = terminal()
    console.print(files[1].read_text(), highlight=False, markup=False)
    list_files(files, console)
