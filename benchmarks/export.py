"""Speed of a small network over the dense one, exported: PyTorch and onnxruntime, one thread.

Run: python benchmarks/export.py runs/lenet5-mnist-sparsify-0 9-8-128-23
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import npn
from common import DENSE_LENET5, lenet5, parser, write
from npn.experiments.engine.timing import Timing, interleaved
from npn.experiments.registry import finished_model
from npn.experiments.report.tables import markdown_table
from npn.export import write_model

AIM = 0.4  # of the MACs ratio
BATCHES = (1, 256)
REPEATS = {1: 50, 256: 3}
Runner = Callable[[], object]


def small(subject: str) -> nn.Module:
    """Load the network of a finished run, or make one with random weights.

    Args:
        subject: folder of the run, or widths as a run prints them.
    """
    return (finished_model(Path(subject))[0] if Path(subject).is_dir() else lenet5(subject)).eval()


def architecture(model: nn.Module) -> str:
    """Write the widths of a LeNet-5 as a run prints them.

    Args:
        model: a LeNet-5.
    """
    first, second = (model.get_parameter(f"{name}.weight").shape[0] for name in ("conv1", "conv2"))
    hidden, inputs = model.get_parameter("fc1.weight").shape
    return f"{first}-{second}-{inputs}-{hidden}"


def eager(model: nn.Module, x: Tensor, memory_format: torch.memory_format) -> Runner:
    """Make a function that does a forward pass in eager PyTorch.

    Args:
        model: to call.
        x: inputs.
        memory_format: of model and inputs.
    """
    model, x = model.to(memory_format=memory_format), x.to(memory_format=memory_format)

    def run() -> None:
        with torch.no_grad():
            model(x)

    return run


def session(model: nn.Module, x: Tensor, folder: Path) -> Runner:
    """Make a function that does a forward pass in onnxruntime, with one thread.

    Args:
        model: to export.
        x: inputs.
        folder: of the exported file.
    """
    import onnxruntime

    path = write_model(model, x[:2] if len(x) > 1 else torch.cat([x, x]), folder / "model.onnx", "onnx")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {made.get_inputs()[0].name: x.numpy()}
    return lambda: made.run(None, feed)


def fastest(model: nn.Module, x: Tensor, rounds: int) -> tuple[str, Runner]:
    """Find the memory format in which PyTorch is faster.

    Args:
        model: to call.
        x: inputs.
        rounds: measurements of each format.

    Returns:
        Name of the format, and a function that does a forward pass in it.
    """
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    runners = {name: eager(copy.deepcopy(model), x, format_) for name, format_ in formats.items()}
    timings = interleaved(runners, "contiguous", rounds, repeats=REPEATS[len(x)])
    name = min(timings, key=lambda name: timings[name].summary()["median"])
    return name, runners[name]


def compare(subject: str, rounds: int) -> dict[str, Any]:
    """Measure the speed-up over the dense net at each batch size in each engine.

    Args:
        subject: folder of a finished run, or widths as a run prints them.
        rounds: measurements of each pass.

    Returns:
        Architecture, MACs and speed-ups.
    """
    nets = {"small": small(subject), "dense": small(DENSE_LENET5)}
    macs = {name: npn.count_macs(net, torch.randn(1, 1, 28, 28)) for name, net in nets.items()}
    ratio, speed_ups = macs["dense"] / macs["small"], []
    for size in BATCHES:
        x = torch.randn(size, 1, 28, 28)
        chosen = {name: fastest(net, x, max(5, rounds // 3)) for name, net in nets.items()}
        with tempfile.TemporaryDirectory() as folder:
            sessions = {name: session(net, x, Path(folder) / name) for name, net in nets.items()}
        torch_runners = {name: runner for name, (_, runner) in chosen.items()}
        formats = {name: format_ for name, (format_, _) in chosen.items()}
        for engine, runners, more in (("torch", torch_runners, {"formats": formats}), ("onnxruntime", sessions, {})):
            timings = interleaved(runners, "small", rounds, repeats=REPEATS[size])
            speed_ups.append({"engine": engine, "batch": size, **more, **_speed_up(timings, ratio)})
    return {"architecture": architecture(nets["small"]), "macs": macs, "speed_ups": speed_ups}


def _speed_up(timings: dict[str, Timing], macs_ratio: float) -> dict[str, Any]:
    dense, ours = timings["dense"].summary(), timings["small"].summary()
    share = dense["median"] / macs_ratio
    return {
        "dense_seconds": dense["seconds"],
        "small_seconds": ours["seconds"],
        "speed_up": dense["median"],
        "quartiles": [dense["quartile_low"], dense["quartile_high"]],
        "macs_ratio": round(macs_ratio, 3),
        "share_of_macs_ratio": round(share, 3),
        "aim_met": share >= AIM,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Write a table with one row per network, engine and batch size.

    Args:
        found: results of `compare`.
    """
    header = ["network", "engine", "batch", "dense ms", "small ms", "speed-up", "MACs ratio", "speed-up / MACs ratio"]
    rows = [
        [
            entry["architecture"],
            one["engine"],
            one["batch"],
            f"{1e3 * one['dense_seconds']:.3f}",
            f"{1e3 * one['small_seconds']:.3f}",
            f"{one['speed_up']:.1f} ({one['quartiles'][0]:.1f}-{one['quartiles'][1]:.1f})",
            f"{one['macs_ratio']:.1f}",
            f"{one['share_of_macs_ratio']:.2f}",
        ]
        for entry in found
        for one in entry["speed_ups"]
    ]
    return markdown_table(header, rows)


def main() -> None:
    """Measure, print the table, write it."""
    options_ = parser(__doc__, "export", rounds=(30, "measurements of each pass"))
    options_.add_argument("subjects", nargs="+", help="folders of finished runs, or widths such as 9-8-128-23")
    options_.set_defaults(threads=1)
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    found = [compare(subject, options.rounds) for subject in options.subjects]
    tables = [table(found)]
    print(*tables, sep="\n\n")
    notes = [
        f"Dense is {DENSE_LENET5}. Both are measured in turn, in PyTorch each in the memory format that is faster for "
        "it (contiguous or channels_last); the median of the interleaved ratios is the speed-up, with its quartiles. "
        f"The aim is a speed-up of at least {AIM} of the ratio of the MACs. At batch 1 it is bounded by what a call "
        "costs whatever its size."
    ]
    write(options.out, "Exported networks against the dense one", {"aim": AIM, "networks": found}, tables, notes)


if __name__ == "__main__":
    main()
