"""ARM's second pass in train mode and in eval mode, on a ResNet with gates: the difference of its two losses.

Run: python benchmarks/antithetic.py --depth 20 --steps 200 --draws 100 --seeds 3 --data FOLDER
"""

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import npn
from common import BATCH_SIZE, parser, write
from npn._utils.models import evaluating
from npn.experiments.data.augment import crop_and_flip
from npn.experiments.data.cifar import cifar, normalised
from npn.experiments.data.cifar import statistics as channels
from npn.experiments.report.tables import markdown_table
from npn.experiments.resnet.model import ResNet

K = 7.0


def differences(plastic: npn.Plasticity, loss: Callable[[], Tensor], evaluated: bool, draws: int) -> list[float]:
    """Compute f~ - f for some draws of the masks; weights, gates and statistics stay as they are.

    Args:
        plastic: with the estimator "arm", at a finite k.
        loss: of one batch.
        evaluated: the second pass in eval mode.
        draws: number of draws; the i-th is that of seed i.
    """
    found = []
    buffers = [buffer.clone() for buffer in plastic.model.buffers()]
    for seed in range(draws):
        plastic.gates.generator.manual_seed(seed)
        passes: list[float] = []

        def closure(passes: list[float] = passes) -> Tensor:
            second = evaluated and not torch.is_grad_enabled()
            with evaluating(plastic.model) if second else contextlib.nullcontext():
                value = loss()
            passes.append(float(value.detach()))
            return value

        plastic.backward(closure)
        for parameter in (*plastic.weights(), *plastic.logits()):
            parameter.grad = None
        with torch.no_grad():
            for buffer, value in zip(plastic.model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        found.append(passes[1] - passes[0])
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Return mean, standard deviation and root mean square.

    Args:
        values: at least two.
    """
    rms = statistics.fmean(value**2 for value in values) ** 0.5
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values), "rms": rms}


def trained(depth: int, steps: int, data: Any, seed: int) -> tuple[npn.Plasticity, Callable[[], Tensor]]:
    """Train a network at k = inf for some steps, and set k; return its handle and the loss of a further batch.

    Args:
        depth: of the network.
        steps: to train.
        data: training images.
        seed: of weights and batches.
    """
    torch.manual_seed(seed)
    model, generator = ResNet(depth), torch.Generator().manual_seed(seed)
    mean, std = channels(data.train.x)

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, len(data.train), (BATCH_SIZE,), generator=generator)
        return normalised(crop_and_flip(data.train.x[chosen], generator), mean, std), data.train.y[chosen]

    x, y = batch()
    plastic = npn.attach(
        model, x[:1], estimator="arm", only="blocks.*.branch.conv1", columns="fc", penalty=npn.Penalty("macs", 0.0)
    )
    optimizer = torch.optim.SGD(plastic.weights(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(steps):
        inputs, classes = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), classes).backward()
        optimizer.step()
    optimizer.zero_grad()
    plastic.k = K
    return plastic, lambda: F.cross_entropy(model(x), y)


def main() -> None:
    """Measure, print the table, write it."""
    numbers = {
        "depth": (20, "layers"),
        "steps": (200, "steps at k = inf before"),
        "draws": (100, "of the masks"),
        "seeds": (3, "networks: weights and batches of seeds 0, 1, ..."),
    }
    options_ = parser(__doc__, "antithetic", **numbers)
    options_.add_argument("--data", help="folder of CIFAR-10 [default: $NPN_DATA]")
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    data = cifar("cifar10", options.data)
    found = []
    for seed in range(options.seeds):
        plastic, loss = trained(options.depth, options.steps, data, seed)
        modes = {name: differences(plastic, loss, name == "eval", options.draws) for name in ("train", "eval")}
        found.append({"seed": seed, **{name: summary(values) for name, values in modes.items()}})
        found[-1]["ratio"] = found[-1]["eval"]["rms"] / found[-1]["train"]["rms"]
    rows = [
        (each["seed"], name, *(f"{each[name][key]:+.4f}" for key in ("mean", "std", "rms")), f"{each['ratio']:.1f}")
        for each in found
        for name in ("train", "eval")
    ]
    head = ("seed", "second pass", "mean of f~ - f", "standard deviation", "root mean square", "eval / train")
    notes = [
        "The last column is the root mean square in eval mode over that in train mode. The estimate is "
        "(f~ - f)(u - 1/2), so its second moment has the square of this factor. In train mode each pass has batch "
        "statistics of its own.",
        f"ResNet-{options.depth} on CIFAR-10, after {options.steps} steps at k = inf, then k = {K:g}, gates at "
        f"pi = 0.95; {options.draws} draws, the same in both modes, on one batch of {BATCH_SIZE} training images.",
    ]
    tables = [markdown_table(head, rows)]
    print(*tables, *notes, sep="\n\n")
    settings = {key: getattr(options, key) for key in numbers}
    title = "The antithetic pass of ARM in train and in eval mode"
    write(options.out, title, {"settings": settings, "differences": found}, tables, notes)


if __name__ == "__main__":
    main()
