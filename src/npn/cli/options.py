"""Options that several commands share."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from npn.errors import ConfigurationError
from npn.experiments.engine.rundir import make_folder

Mode = Annotated[
    str | None,
    typer.Option(
        help="sparsify (start full, remove) or expand (start tiny, add); the larger nets also dense (the full net) "
        "and scratch (a plain net of the budget's size). (default: sparsify)"
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Draws data, weights and masks. (default: 0)")]
K = Annotated[float | None, typer.Option("--k", min=0.0, help="Sharpness k of the plastic stage. (default: 7)")]
Estimator = Annotated[
    str | None, typer.Option(help="arm, disarm, rloo, double_cv, straight_through or reinmax. (default: reinmax)")
]
Function = Annotated[str | None, typer.Option(help="sigmoid, hard_sigmoid or shifted_sigmoid. (default: sigmoid)")]
Penalty = Annotated[
    float | None, typer.Option(min=0.0, help="Price in loss units of a parameter (ResNets, GPT: of a MAC).")
]
Budget = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Parameters (ResNets, GPT: MACs) to end with, instead of a penalty; up to 1: a share of the full net.",
    ),
]
Epochs = Annotated[str | None, typer.Option(help='Epochs in all, or per stage: "60,340,100".')]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: cpu)")]
Data = Annotated[str | None, typer.Option(help="Folder of the data set's files. (default: $NPN_DATA, else downloaded)")]

GrowthInit = Annotated[
    str | None, typer.Option(help="How new units start in mode expand: zero, pair, select or split. (default: zero)")
]
LearningRate = Annotated[float | None, typer.Option(min=1e-9, help="Highest learning rate of the weights.")]
WeightDecay = Annotated[float | None, typer.Option(min=0.0, help="Weight decay. (default: by experiment and budget)")]
Augment = Annotated[bool | None, typer.Option("--augment", help="Shift, turn and scale the training images.")]
Teacher = Annotated[
    str | None, typer.Option(metavar="RUN", help="Folder of a finished run, whose network's answers are learned, too.")
]
Like = Annotated[
    str | None, typer.Option(metavar="RUN", help="scratch: a net of the widths that this finished run has found.")
]

Preset = Annotated[str | None, typer.Option(help='"paper" for its own recipe: ARM, fixed prices, its epochs.')]

StartFrom = Annotated[
    str | None,
    typer.Option(help="Gates start from magnitude, taylor, fisher, bn_scale or random scores. (default: all alike)"),
]

Depth = Annotated[int | None, typer.Option(help="Layers, 6n + 2: 20, 32, 56, 110. (default: 56)")]
Dataset = Annotated[str | None, typer.Option(help="cifar10 or cifar100. (default: cifar10)")]
Decay = Annotated[
    str | None, typer.Option(help="Fall of the learning rates: steps (the paper's) or cosine. (default: steps)")
]
Stream = Annotated[
    bool | None, typer.Option("--stream", help="Gates on the residual streams, too; shortcuts are projections then.")
]
Blocks = Annotated[
    bool | None, typer.Option("--blocks", help="Gates on whole blocks, too: a closed one is its shortcut.")
]
Branches = Annotated[
    bool | None, typer.Option("--blocks", help="Gates on whole attention and MLP branches, too; expand has them.")
]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16 (mixed). (default: fp32)")]
ChannelsLast = Annotated[bool | None, typer.Option("--channels-last", help="NHWC images and kernels.")]
Compile = Annotated[bool | None, typer.Option("--compile", help="torch.compile; compiles again after each resize.")]

AntitheticEval = Annotated[
    bool | None,
    typer.Option("--antithetic-eval", help="arm, disarm, rloo: the second pass in eval mode, as in the paper's code."),
]
Overshoot = Annotated[
    float | None, typer.Option(help="Growth ends at so many times the budget, before gates choose what stays.")
]
RoundTo = Annotated[
    int | None, typer.Option(min=1, help="The last cut keeps multiples of so many channels; 8 suits GPUs. (default: 1)")
]
Graphs = Annotated[
    bool | None, typer.Option("--graphs", help="CUDA graphs, recorded again after each resize; exact, for small nets.")
]

Text = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder of text files. (default: the sources of Python's library)")
]
Width = Annotated[int | None, typer.Option(min=32, help="Width of the stream, a multiple of 32. (default: 160)")]
Layers = Annotated[int | None, typer.Option(min=1, help="Number of blocks. (default: 6)")]
Context = Annotated[int | None, typer.Option(min=2, help="Bytes of a window. (default: 256)")]
Norm = Annotated[str | None, typer.Option(help="rms or layer. (default: rms)")]
Positions = Annotated[str | None, typer.Option(help="rotary or learned. (default: rotary)")]

RunFolder = Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/EXPERIMENT-MODE-SEED)")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out where it was stopped; begin it if there is none.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left in --out.")]
StopAfter = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES", help="Stop before an epoch that would end later than that; --resume continues the run."
    ),
]
Animate = Annotated[
    bool, typer.Option("--animate", help="Write animation.gif as well, and animation.mp4 where ffmpeg is.")
]
Streams = Annotated[
    bool, typer.Option("--streams", help="Channels under a norm, such as those of a residual stream, count as well.")
]
JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON; everything else goes to stderr.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write curves to the folder's tensorboard/ as well.")]

Seeds = Annotated[str, typer.Option(help='Seeds, as "0-4" or "0,3,7".')]
Results = Annotated[Path, typer.Option(help="Results go to OUT.json, OUT.md and OUT.png.")]
RunsFolder = Annotated[Path, typer.Option(help="Folder of the single runs; finished ones are used as they are.")]


@dataclass(frozen=True)
class Launch:
    """Where and how to run, in contrast to the settings of the run.

    Attributes:
        out: folder of the run.
        resume: continue where the run was stopped.
        overwrite: delete the files of an earlier run.
        stop_after: limit in minutes.
        tensorboard: write curves for TensorBoard as well.
        animate: write an animation as well.
        json: print the result as JSON on stdout, and everything else on stderr.
    """

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    stop_after: float | None = None
    tensorboard: bool = False
    json: bool = False
    animate: bool = False


def listed(text: str) -> list[str]:
    """Split a list at its commas.

    Args:
        text: the list.

    Example:
        >>> listed("arm, rloo")
        ['arm', 'rloo']
    """
    return [part.strip() for part in text.split(",")]


def sizes(budgets: str) -> list[float]:
    """Parse a list of budgets.

    Args:
        budgets: numbers separated by commas.

    Raises:
        ConfigurationError: a part is not a number above 0.
    """
    try:
        found = [float(part) for part in listed(budgets)]
    except ValueError:
        found = []
    if not found or not all(0 < size < math.inf for size in found):
        raise ConfigurationError(
            f'budgets must be numbers above 0, separated by commas, as "0.5,0.25", got {budgets!r}'
        )
    return found


def writable(path: Path) -> Path:
    """Return the path of a file to write, whose folder is there after the call.

    Args:
        path: of the file.

    Raises:
        ConfigurationError: it is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; --out takes the path of a file, such as {path / 'model.pt2'}")
    make_folder(path.parent)
    return path
