"""What one plastic step costs over a plain one: medians of interleaved ratios, in one process.

Run: python benchmarks/step.py --rounds 60 --out results/step.json
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

AIMS = {"k = inf": 1.02, "reinmax": 1.10, "straight_through": 1.10, "arm": 1.45, "disarm": 1.45, "rloo": 1.45}


def mlp() -> tuple[nn.Module, Tensor]:
    """784-500-300-10, batch 128."""
    layers = [nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)]
    return nn.Sequential(*layers), torch.randn(128, 1, 28, 28)


def conv() -> tuple[nn.Module, Tensor]:
    """LeNet5-Caffe, 20-50-800-500, batch 128."""
    features = [nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)]
    return nn.Sequential(*features, *head), torch.randn(128, 1, 28, 28)


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step without npn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def plastic_step(model: nn.Module, x: Tensor, y: Tensor, estimator: str | None) -> Callable[[], None]:
    """The same step with gates; `None` is k = inf."""
    plastic = npn.attach(model, x[:2], estimator=estimator or "reinmax")
    plastic.k = math.inf if estimator is None else 7.0
    weights = torch.optim.SGD(plastic.weights(), lr=1e-3, momentum=0.9)
    gates = torch.optim.Adam(plastic.logits(), lr=0.0, fused=True)  # the gates stay where they are, the work is done
    plastic.track(weights, gates)

    def step() -> None:
        weights.zero_grad()
        gates.zero_grad()
        plastic.backward(lambda: F.cross_entropy(model(x), y))
        weights.step()
        gates.step()

    return step


def ratios(build: Callable[[], tuple[nn.Module, Tensor]], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of time over the plain step's, per variant; a second pass costs a forward at least."""
    names: list[str | None] = [None, "reinmax", "straight_through", "arm", "disarm", "rloo", "double_cv"]
    y = torch.randint(0, 10, (128,), device=device)

    def fresh() -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        model, x = build()
        return model.to(device), x.to(device)

    plain = plain_step(*fresh(), y)
    forward, x = fresh()

    def alone() -> None:
        with torch.no_grad():
            F.cross_entropy(forward(x), y)

    steps: dict[str, Callable[[], None]] = {"forward alone": alone}
    steps |= {name or "k = inf": plastic_step(*fresh(), y, name) for name in names}
    measured: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 3):
        for name, step in steps.items():
            before, between, after = _time(plain, device), _time(step, device), _time(plain, device)
            if round_ >= 3:
                measured[name].append(between / ((before + after) / 2))
    return {name: _summary(values) for name, values in measured.items()}


def _time(step: Callable[[], None], device: str, repeats: int = 3) -> float:
    """Seconds for some steps, after one that warms the caches: the variants would else pay for each other's memory."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 3), "quartile_low": round(low, 3), "quartile_high": round(high, 3)}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = {}
    for build in (mlp, conv):
        table[build.__name__] = ratios(build, options.rounds, options.device)
        print(f"\n{build.__doc__}\n{'':18} ratio   quartiles      aim")
        for name, row in table[build.__name__].items():
            aim = f"{AIMS[name]:.2f}" if name in AIMS else "-"
            print(f"{name:18} {row['median']:.3f}   {row['quartile_low']:.3f}-{row['quartile_high']:.3f}    {aim}")
    if options.out:
        report = {
            "command": f"python benchmarks/step.py --rounds {options.rounds} --threads {options.threads}",
            "machine": f"{platform.machine()} {platform.processor()}".strip(),
            "device": options.device,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "rounds": options.rounds,
            "ratio_over_plain_step": table,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
