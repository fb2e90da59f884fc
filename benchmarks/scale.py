"""Cost against work: steps, attach, resize and checkpoint as parameters, units or blocks grow, each ideally linear.

Run: python benchmarks/scale.py --rounds 3 --threads 1
"""

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from common import parser, training_step, write
from npn.experiments.engine.timing import interleaved, seconds
from npn.experiments.report import figures
from npn.experiments.report.tables import markdown_table

BATCH_SIZE, CLASSES, SHARE, CLOCK = 32, 8, 0.1, time.process_time
OPERATIONS = ("plain step", "k = inf", "reinmax", "attach", "compact", "save", "load")


class Block(nn.Module):
    """x + linear(relu(linear(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, width)."""
        return x + self.down(F.relu(self.up(x)))


def by_parameters() -> Iterator[tuple[int, nn.Module, int]]:
    """Two square matrices in a row, 1e5 to 1e8 parameters; units grow as their root."""
    for parameters in (10**5, 10**6, 10**7, 10**8):
        width = round(math.sqrt(parameters / 2))
        yield parameters, nn.Sequential(*_layers(width, width, width, CLASSES)), width


def by_units() -> Iterator[tuple[int, nn.Module, int]]:
    """One hidden layer of 1e2 to 1e5 units with 40 weights each; parameters grow alike."""
    for units in (10**2, 10**3, 10**4, 10**5):
        yield units, nn.Sequential(*_layers(32, units, CLASSES)), 32


def by_blocks() -> Iterator[tuple[int, nn.Module, int]]:
    """1 to 96 residual blocks of 32 units; parameters grow alike."""
    for blocks in (1, 3, 12, 48, 96):
        yield blocks, nn.Sequential(*(Block(32) for _ in range(blocks)), nn.Linear(32, CLASSES)), 32


SWEEPS = {"parameters": by_parameters, "units": by_units, "blocks": by_blocks}


def _layers(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def measured(model: nn.Module, inputs: int, rounds: int) -> dict[str, float]:
    """Measure the CPU seconds of every operation on one model.

    Args:
        model: without gates.
        inputs: features of an example.
        rounds: measurements of each step.

    Returns:
        Operation -> seconds; the plastic steps also as a ratio over the plain step, under "... ratio".
    """
    x, y = torch.randn(BATCH_SIZE, inputs), torch.randint(0, CLASSES, (BATCH_SIZE,))
    plain = copy.deepcopy(model)
    start = CLOCK()
    plastic = npn.attach(model, x[:2])
    found = {"attach": CLOCK() - start}
    optimizer = torch.optim.SGD(plastic.weights(), lr=1e-3)
    plastic.track(optimizer)

    def step(k: float) -> Callable[[], None]:
        def run() -> None:
            plastic.k = k
            optimizer.zero_grad()
            plastic.backward(lambda: F.cross_entropy(model(x), y))
            optimizer.step()

        return run

    steps = {
        "plain step": training_step(plain, torch.optim.SGD(plain.parameters(), lr=1e-3), x, y),
        "k = inf": step(math.inf),
        "reinmax": step(7.0),
    }
    repeats = max(1, min(100, round(0.02 / seconds(steps["plain step"], clock=CLOCK))))  # a short step is repeated
    for name, timing in interleaved(
        steps, "plain step", rounds, repeats=repeats, warmup=int(repeats > 1), clock=CLOCK
    ).items():
        summary = timing.summary()
        found[name] = summary["seconds"]
        found[f"{name} ratio"] = summary["median"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        found["save"] = seconds(lambda: npn.save(file, plastic), warm=False, clock=CLOCK)
        found["load"] = seconds(lambda: npn.load(file, plastic), warm=False, clock=CLOCK)
    for group in plastic.groups:
        plastic.close(group, range(0, group.size, round(1 / SHARE)))
    found["compact"] = seconds(plastic.compact, warm=False, clock=CLOCK)
    return found


def draw(path: Path, found: dict[str, dict[int, dict[str, float]]]) -> None:
    """Draw seconds against work on logarithmic axes, one panel per sweep.

    Args:
        path: of the picture.
        found: sweep -> amount of work -> operation -> seconds.
    """
    figure, axes = figures.canvas(1, len(found), 11.0, 3.8)
    for axis, (sweep, rows) in zip(axes.flat, found.items(), strict=True):
        for name in OPERATIONS:
            axis.loglog(list(rows), [row[name] for row in rows.values()], "o-", label=name, markersize=3)
        largest, last = max(rows), max(rows[max(rows)].values())
        axis.loglog(list(rows), [last * work / largest for work in rows], ":", color="grey", label="linear")
        axis.set_xlabel(sweep)
        axis.set_title(f"by {sweep}", fontsize="medium")
    axes.flat[0].set_ylabel("CPU seconds")
    axes.flat[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0))
    figures.save(figure, path)


def main() -> None:
    """Measure, print the tables, write them and the picture."""
    options_ = parser(__doc__, "scale", rounds=(5, "measurements of each step"))
    options = options_.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found: dict[str, dict[int, dict[str, float]]] = {}
    tables: list[str] = []
    npn.attach(nn.Sequential(*_layers(8, 8, 8)), torch.zeros(2, 8))  # the first one imports the compiler
    for name, sweep in SWEEPS.items():
        rows: dict[int, dict[str, float]] = {}
        for work, model, inputs in sweep():
            rows[work] = measured(model, inputs, options.rounds)
        found[name] = rows
        tables += [f"## {sweep.__doc__}", _table(name, rows)]
        print(*tables[-2:], sep="\n\n")
    draw(options.out.with_suffix(".png"), found)
    picture = f"![Seconds against work]({options.out.name}.png)"
    notes = [
        f"CPU seconds on one thread, while other work ran on the machine; batches of {BATCH_SIZE}. Steps: median of "
        f"{options.rounds} rounds, and in brackets the ratio over the plain step just before and after. Attach, save, "
        "load and compact (a tenth of the units): once.",
        "Last row: the exponent p of seconds ~ work^p between the last two rows, where fixed costs count least; 1 is "
        "linear.",
    ]
    result: dict[str, Any] = {"rounds": options.rounds, "seconds": found}
    write(options.out, "Cost against work", result, [picture, *tables], notes)


def _table(name: str, rows: dict[int, dict[str, float]]) -> str:
    def shown(row: dict[str, float], operation: str) -> str:
        ratio = "" if operation not in OPERATIONS[1:3] else f" ({row[f'{operation} ratio']:.2f})"
        return f"{row[operation]:.3g}{ratio}"

    cells = [[f"{work:,}", *(shown(row, operation) for operation in OPERATIONS)] for work, row in rows.items()]
    cells.append(["exponent", *(f"{exponent(rows, operation):.2f}" for operation in OPERATIONS)])
    return markdown_table([name, *OPERATIONS], cells)


def exponent(rows: dict[int, dict[str, float]], operation: str) -> float:
    """The exponent p of seconds ~ work^p between the two largest amounts of work.

    Args:
        rows: amount of work -> operation -> seconds.
        operation: one of `OPERATIONS`.
    """
    less, more = sorted(rows)[-2:]
    return math.log(rows[more][operation] / rows[less][operation]) / math.log(more / less)


if __name__ == "__main__":
    main()
