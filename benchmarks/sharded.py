"""Collectives and bytes of a sharded model with gates: steps, a call under masks, resizes; and the same for many GPUs.

Run: python benchmarks/sharded.py

Two gloo processes train a small GPT under `fully_shard`, and a dispatch mode counts their collectives and the bytes of
the whole tensors that these make. The counts, as multiples of parameters and gates, are then multiplied out for a GPT
of `--layers`, `--width` and `--vocabulary`, with an MLP of four times the width and heads of 128, on `--gpus`.
"""

import argparse
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import npn
from common import parser, write
from npn.experiments.language.model import BYTES, GPT
from npn.experiments.report.tables import markdown_table

PROCESSES = 2
KINDS = {"scatter": "reduce-scatter", "reduce": "all-reduce", "gather": "all-gather", "broadcast": "broadcast"}
Counts = dict[str, list[int]]  # kind -> bytes of the whole tensor of each collective


class Counter(TorchDispatchMode):
    """Counts collectives, and the bytes of the largest tensor of each: the whole, whatever the number of processes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counts = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it dispatches to the operators inside, which come here again
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        kind = next((kind for part, kind in KINDS.items() if part in name), None)
        if name.startswith(("c10d::", "_c10d_functional::")) and kind is not None:  # others wait, or wrap tensors
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.found.setdefault(kind, []).append(max(t.numel() * t.itemsize for t in tensors))
        return out


@contextmanager
def counted(into: dict[str, Counts], name: str) -> Iterator[None]:
    """Count the collectives inside the context."""
    with Counter() as counter:
        yield
    into[name] = counter.found


def measure(rank: int, port: int, queue: Any) -> None:
    """What happens on one process; the first one puts its counts into the queue."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    tokens = torch.randint(BYTES, (2, 16))
    plastic = npn.attach(GPT(width=64, layers=2), tokens)
    blocks = [module for module in plastic.model.modules() if type(module).__name__ == "Block"]
    model = npn.distributed.shard(plastic, blocks)
    weights = torch.optim.AdamW(plastic.weights(), lr=1e-3)
    gates = torch.optim.Adam(plastic.logits(), lr=1e-3)
    plastic.track(weights, gates)

    def step() -> None:
        plastic.backward(lambda: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))
        weights.step()
        gates.step()

    step()
    counts: dict[str, Counts] = {}
    with counted(counts, "step, k = inf"):
        step()
    plastic.k = 7.0
    with counted(counts, "step, k = 7, reinmax"):
        step()
    sizes = {
        "parameters": sum(p.numel() for p in plastic.weights()),
        "gates": sum(logits.numel() for logits in plastic.logits()),
        "touched": 0,
    }
    plastic.k = float("inf")
    groups = [group for group in plastic.groups if group.size == 256]
    plastic.close(groups[0], [0])
    with counted(counts, "call, a unit closed"), torch.no_grad():
        model(tokens)
    before = {name: (p.shape, p.numel()) for name, p in model.named_parameters()}
    with counted(counts, "compact"):
        plastic.compact()
    sizes["touched"] = sum(before[name][1] for name, p in model.named_parameters() if p.shape != before[name][0])
    with counted(counts, "grow"):
        plastic.grow({groups[1].name: 1})
    if rank == 0:
        queue.put((sizes, counts))
    dist.barrier()
    dist.destroy_process_group()


def rows_counted(sizes: dict[str, int], counts: dict[str, Counts]) -> list[list[object]]:
    """One line for each action and kind of collective; those of pickled objects, some hundred bytes, are their own."""
    units = {
        "parameters": 4 * sizes["parameters"],
        "touched parameters": 4 * sizes["touched"],
        "gates": 4 * sizes["gates"],
    }
    rows = []
    for action, found in counts.items():
        for kind, every in found.items():
            total = sum(every)
            unit = (
                "gates"
                if kind == "all-reduce"
                else "touched parameters"
                if action in ("compact", "grow")
                else "parameters"
            )
            rows.append([action, kind, len(every), total, f"{total / units[unit]:.2f} x {unit}"])
    return rows


def rows_expected(args: argparse.Namespace) -> list[list[object]]:
    """Bytes for a large model on many GPUs: parameters gathered in 2 bytes, gates and optimizer state in 4."""
    d, n = args.width, args.gpus
    block = 12 * d * d
    parameters = args.layers * block + args.vocabulary * d
    gates = args.layers * (4 * d + d // 128)
    rest = (n - 1) / n
    masked = args.layers * 5 * d * d  # what reads units: the output of the attention, and of the MLP

    def gigabytes(what: str, size: float, note: str) -> list[object]:
        return [what, f"{size / 1e9:.3f} GB", note]

    return [
        ["parameters", f"{parameters:,}", ""],
        ["gates", f"{gates:,}", "MLP units and heads"],
        [
            "collectives of a step",
            3 * args.layers + 2 + 2,
            "two gathers, a scatter per block; two for gates",
        ],
        gigabytes("received in a step, by fully_shard", 3 * rest * 2 * parameters, "the same, bf16"),
        gigabytes("received in a step, for gates", 2 * 2 * rest * 4 * gates, "two all-reduces as rings, fp32"),
        gigabytes("memory: weights, AdamW", 3 * 4 * parameters / n, "fp32 rows"),
        gigabytes("memory: rows and gradients aside", 2 * 4 * masked / n, "of weights that read units"),
        gigabytes("memory: gates, AdamW", 4 * 4 * gates, "whole on every process"),
        ["all-gathers of a resize of every block", 4 * 7 * args.layers, "7 tensors: values, gradients, two moments"],
        gigabytes("received in it", 4 * rest * 4 * args.layers * block, "the same, fp32"),
        gigabytes("memory: one tensor whole, twice", 2 * 4 * 4 * d * d, "before and after"),
        gigabytes("memory: new rows until all are there", 4 * 4 * args.layers * block / n, "a failure changes nothing"),
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(run: Callable[..., Any] = multiprocessing.spawn) -> None:
    numbers = {"layers": (32, "blocks"), "width": (4096, "of the stream"), "vocabulary": (32000, "tokens")}
    made = parser(__doc__, "sharded", **numbers, gpus=(64, "that the model is split over"))
    args = made.parse_args()
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    run(measure, (free_port(), queue), nprocs=PROCESSES)
    sizes, counts = queue.get()
    small = rows_counted(sizes, counts)
    large = rows_expected(args)
    tables = [
        markdown_table(["action", "collective", "number", "bytes of the whole", "as a multiple (4 bytes each)"], small),
        markdown_table([f"per process, on {args.gpus} GPUs", "", "of what"], large),
    ]
    note = (
        f"Counted: {PROCESSES} gloo processes, a GPT of {sizes['parameters']:,} parameters and {sizes['gates']} gates, "
        f"fp32; the resize touched {sizes['touched']:,}. Computed: {args.layers} blocks of width {args.width}."
    )
    for path in write(args.out, "Sharded training", {"sizes": sizes, "counts": counts}, tables, [note]):
        print(path)


if __name__ == "__main__":
    main()
