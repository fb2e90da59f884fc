"""Time of a plastic step over a plain one on a GPU: eager, as CUDA graphs and compiled; and its operators."""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import npn
from common import BATCH_SIZE
from npn.cuda_graphs import cuda_graph, own_stream
from npn.experiments.engine.rundir import write_json
from npn.experiments.engine.timing import interleaved, seconds
from npn.experiments.report.provenance import machine
from npn.experiments.resnet.model import ResNet

STEPS: Mapping[str, str | None] = {"plain": None, "k = inf": None, "reinmax": "reinmax", "disarm": "disarm"}
WAYS = ("eager", "graphs", "compiled")
REPEATS = 10  # calls in a row: as in training, the next one is launched while the last one runs
WIDTHS = {"16, 32, 64": 1.0, "8, 16, 32": 0.5, "7, 14, 29": 29 / 64}  # channels inside the blocks of each section
Step = Callable[[], None]


class Count(TorchDispatchMode):
    """Counts the operators that a call dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def networks(depth: int) -> dict[str, Callable[[], nn.Module]]:
    """Name -> function that makes the network; images are those of CIFAR.

    Args:
        depth: of the residual network.
    """
    layers = [nn.Flatten(), nn.Linear(3072, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)]
    return {"MLP 3072-500-300-10": lambda: nn.Sequential(*layers), f"ResNet-{depth}": lambda: ResNet(depth)}


def make(build: Callable[[], nn.Module], step: str, way: str, device: str, precision: str) -> Step:
    """Make a function that does one training step.

    Args:
        build: makes the network.
        step: one of `STEPS`.
        way: one of `WAYS`.
        device: to train on.
        precision: "fp32", or a precision of autocast.
    """
    torch.manual_seed(0)
    model = build().to(device, memory_format=torch.channels_last)
    x = torch.randn(BATCH_SIZE, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH_SIZE,), device=device)
    kind = torch.device(device).type
    cast = torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")
    weights = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def loss_of(call: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            with cast:
                logits = call(x)
            return F.cross_entropy(logits.float(), y)

        return loss

    if step == "plain":
        call = torch.compile(model) if way == "compiled" else model
        loss = loss_of(call)
        parameters = list(model.parameters())

        def backward() -> Tensor:
            value = loss(x, y)
            value.backward()
            return value.detach()

        replays: list[Callable[[], Tensor]] = []
        warm = 0

        def plain() -> None:
            nonlocal warm
            weights.zero_grad()
            warm += 1
            if way == "graphs" and warm > 3:
                if not replays:
                    replays.append(cuda_graph(backward, parameters, torch.Generator(device)))
                replays[0]()
            else:
                backward()
            weights.step()

        return plain
    plastic = npn.attach(model, x[:1], estimator=STEPS[step] or "reinmax", penalty=npn.Penalty("macs", 1e-12))
    plastic.k = math.inf if STEPS[step] is None else 7.0
    gates = torch.optim.Adam(plastic.logits(), lr=0.0, fused=True)  # the gates stay where they are, the work is done
    plastic.track(weights, gates)
    loss = loss_of(torch.compile(model) if way == "compiled" else model)
    graphs = npn.CudaGraphs(plastic) if way == "graphs" else None

    def plastic_step() -> None:
        weights.zero_grad()
        gates.zero_grad()
        if graphs is not None:
            graphs.backward(loss, x, y)
        else:
            plastic.backward(lambda: loss(x, y))
        weights.step()
        gates.step()

    return plastic_step


def widths(options: argparse.Namespace, end: float) -> dict[str, dict[str, Any]]:
    """Compare plain steps of narrower nets with that of the full one: bf16 convolutions want multiples of 8.

    Args:
        options: of the command line.
        end: time by the monotonic clock.

    Returns:
        Name of a width -> median ratio, seconds; empty where there is no time.
    """
    way = "graphs" if torch.device(options.device).type == "cuda" else "eager"
    calls = {}
    for name, width in WIDTHS.items():
        if time.monotonic() > end:
            return {}
        build = partial(ResNet, options.depth, width=width)
        calls[name] = make(build, "plain", way, options.device, options.precision)
        for _ in range(5):
            calls[name]()
    timings = interleaved(calls, next(iter(WIDTHS)), options.rounds, repeats=REPEATS, warmup=1, device=options.device)
    return {name: timing.summary() for name, timing in timings.items()}


def operators(step: Step) -> int:
    """Count the operators of one call.

    Args:
        step: to call.
    """
    step()
    with Count() as count:
        step()
    return count.operators


def cases(device: str) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Way, steps and why there are no others: the ways from the one that needs least time to that which needs most.

    Args:
        device: to measure on.
    """
    cuda = torch.device(device).type == "cuda"
    yield "eager", tuple(STEPS), ""
    yield "graphs", ("plain", "k = inf", "reinmax") if cuda else (), "two passes" if cuda else "only on CUDA"
    yield "compiled", tuple(STEPS) if cuda else (), "" if cuda else "only on CUDA, where it may pay"


def main(options: argparse.Namespace, end: float) -> dict[str, Any]:
    """Measure what there is time for, and write steps.json after each way of each network.

    Args:
        options: of the command line.
        end: time by the monotonic clock.

    Returns:
        "network; way; step" -> median ratio, seconds, operators.
    """
    found: dict[str, Any] = {}
    narrow: dict[str, Any] = {}
    used, device = machine(options.device), options.device
    with own_stream(device):
        for way in WAYS:
            steps, lacking = next((steps, why) for name, steps, why in cases(device) if name == way)
            for network, build in networks(options.depth).items():
                key = f"{network}; {way}; "
                found |= {key + step: {"reason": lacking} for step in STEPS if step not in steps}
                for rows in _measured(options, end, build, way, steps):
                    found |= {key + step: row for step, row in rows.items()}
                    write_json(options.out / "steps.json", {"machine": used, "steps": found, "widths": narrow})
            if way == "graphs":  # before what takes longest
                narrow = widths(options, end)
    return found


def _measured(
    options: argparse.Namespace, end: float, build: Callable[[], nn.Module], way: str, steps: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Measure the steps of one network in one way; a step that fails is left out, with its reason.

    Yields what is known, before the times are measured and after: a limit of time may end the process in between.
    """
    rows: dict[str, Any] = {}
    calls: dict[str, Step] = {}
    for name in steps:
        began = time.monotonic()
        if began > end:
            rows[name] = {"reason": "no time left"}
            continue
        try:
            calls[name] = make(build, name, way, options.device, options.precision)
            for _ in range(5):
                calls[name]()
            count = operators(calls[name]) if way == "eager" else None
            rows[name] = {"reason": "", **({} if count is None else {"operators": count})}
        except Exception as error:
            calls.pop(name, None)
            rows[name] = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("|", "/")}
        print(f"  {way} {name}: {time.monotonic() - began:.1f} s to set up {rows[name]['reason']}", flush=True)
    yield rows
    if "plain" not in calls:
        return
    began = time.monotonic()
    for call in calls.values():
        seconds(call, warm=False, device=options.device)
    each = 3 * (1 + REPEATS) * (time.monotonic() - began)  # and one to warm up, of each and of plain on both sides
    rounds = min(options.rounds, int((end - time.monotonic()) / 2 / each) - 1)  # one more to warm up; half for the rest
    if rounds < 1:
        yield rows | {name: {**rows[name], "reason": "no time left"} for name in calls}
        return
    for name, timing in interleaved(calls, "plain", rounds, repeats=REPEATS, warmup=1, device=options.device).items():
        rows[name] |= {**timing.summary(), "rounds": rounds}
        print(f"  {way} {name}: {rows[name]}", flush=True)
    yield rows
