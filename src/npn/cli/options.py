"""Options that several commands share: described once, and put into a command's signature by a decorator."""

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class Launch:
    """Where and how a run goes, as opposed to what is run.

    Attributes:
        out: folder of the run.
        resume: go on where it was stopped.
        overwrite: delete what an earlier run left there.
        stop_after: minutes.
        tensorboard: write curves for TensorBoard as well.
    """

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    stop_after: float | None = None
    tensorboard: bool = False


DESCRIBED: dict[str, Any] = {
    "mode": Annotated[
        str | None,
        typer.Option(
            help="sparsify (start full, remove) or expand (start tiny, add); LeNet-5 and ResNets also dense (the full "
            "net) and scratch (a plain net of the budget's size). (default: sparsify)"
        ),
    ],
    "seed": Annotated[int | None, typer.Option(min=0, help="Draws data, weights and masks. (default: 0)")],
    "k": Annotated[float | None, typer.Option("--k", min=0.0, help="Sharpness k of the plastic stage. (default: 7)")],
    "estimator": Annotated[
        str | None, typer.Option(help="arm, disarm, rloo, double_cv, straight_through or reinmax. (default: reinmax)")
    ],
    "function": Annotated[
        str | None, typer.Option(help="sigmoid, hard_sigmoid or shifted_sigmoid. (default: sigmoid)")
    ],
    "penalty": Annotated[
        float | None, typer.Option(min=0.0, help="Price in loss units of a parameter (ResNets: of a MAC).")
    ],
    "budget": Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Parameters (ResNets: MACs) to end with, instead of a penalty; up to 1: a share of the full net.",
        ),
    ],
    "epochs": Annotated[str | None, typer.Option(help='Epochs in all, or per stage: "60,340,100".')],
    "device": Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: cpu)")],
    "data": Annotated[
        str | None, typer.Option(help="Folder of the data set's files. (default: $NPN_DATA, else downloaded)")
    ],
    "depth": Annotated[int | None, typer.Option(help="Layers, 6n + 2: 20, 32, 56, 110. (default: 56)")],
    "dataset": Annotated[str | None, typer.Option(help="cifar10 or cifar100. (default: cifar10)")],
    "decay": Annotated[
        str | None, typer.Option(help="Of the learning rates: steps (the paper's) or cosine. (default: steps)")
    ],
    "stream": Annotated[
        bool | None,
        typer.Option("--stream", help="Gates on the residual streams, too; shortcuts are projections then."),
    ],
    "blocks": Annotated[
        bool | None, typer.Option("--blocks", help="Gates on whole blocks, too: a closed one is its shortcut.")
    ],
    "precision": Annotated[str | None, typer.Option(help="fp32, bf16 or fp16 (mixed). (default: fp32)")],
    "channels_last": Annotated[bool | None, typer.Option("--channels-last", help="NHWC images and kernels.")],
    "compile": Annotated[
        bool | None, typer.Option("--compile", help="torch.compile; compiles anew after each resize.")
    ],
    "out": Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/EXPERIMENT-MODE-SEED)")],
    "resume": Annotated[bool, typer.Option("--resume", help="Go on where the run in --out was stopped.")],
    "overwrite": Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left in --out.")],
    "stop_after": Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", help="Stop before an epoch that would not be over by then; --resume goes on later."
        ),
    ],
    "tensorboard": Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to the folder's tensorboard/ as well.")
    ],
}


def spelled_out(without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take dataclasses: on the command line each is its fields, as described above.

    Args:
        without: fields that this command does not offer, or under whose name it takes something of its own; they keep
            their defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        shared: dict[str, type] = {}  # parameter -> dataclass
        offered: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            if is_dataclass(kind := parameter.annotation) and isinstance(kind, type):
                shared[name] = kind
                offered += [
                    inspect.Parameter(f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=DESCRIBED[f.name])
                    for f in fields(kind)
                    if f.name not in without
                ]
            else:
                offered.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

        @functools.wraps(function)
        def command(**given: Any) -> None:
            whole = {
                name: kind(**{f.name: given.pop(f.name) for f in fields(kind) if f.name not in without})
                for name, kind in shared.items()
            }
            function(**whole, **given)

        command.__signature__ = signature.replace(parameters=offered)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in offered}
        return command

    return decorate
